"""Urgency of tasks: what is important becomes urgent when its time has come by the database's clock; others stay."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from agent_events.task.events import TaskUrgencyPromoteRequested, publish_task_urgency_promotion
from agent_events.task.models import Task, TaskOutboxMessage
from outbox.exceptions import InvalidEventError
from outbox.testing import drain
from tests import records
from tests.factories import database_now

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def task(alias: str, *, threshold: timedelta | None = -HOUR, **columns: Any) -> Task:
    """Make a task whose threshold is ``threshold`` from now by the database's clock."""
    at = None if threshold is None else database_now(alias) + threshold
    return Task.objects.using(alias).create(
        **({"user_id": 7, "title": "Write", "priority": 2, "urgency_threshold_at": at} | columns)
    )


def promote(alias: str, *tasks: Task, user_id: int = 7) -> None:
    publish_task_urgency_promotion(user_id=user_id, task_ids=[each.pk for each in tasks])
    drain("task", raise_on_dead=True)


def priorities(alias: str) -> list[Any]:
    return records.rows(Task, alias, "priority")


def test_task_whose_time_has_come_becomes_urgent(alias: str) -> None:
    made = task(alias)
    made.refresh_from_db()  # MySQL's INSERT returns no columns
    promote(alias, made)
    promoted = Task.objects.using(alias).get()
    assert promoted.priority == 1
    assert promoted.updated_at >= made.created_at
    assert (promoted.title, promoted.is_completed, promoted.urgency_threshold_at) == (
        made.title,
        False,
        made.urgency_threshold_at,
    )


def test_others_stay(alias: str) -> None:
    others = [
        task(alias, threshold=HOUR),
        task(alias, threshold=None),
        task(alias, is_completed=True),
        task(alias, user_id=8),
        task(alias, priority=1),
        task(alias, priority=3),
        task(alias, priority=4),
    ]
    before = records.rows(Task, alias, "priority", "is_completed", "updated_at")
    due = task(alias)
    promote(alias, due, *others)
    assert records.rows(Task, alias, "priority", "is_completed", "updated_at")[:-1] == before
    assert priorities(alias) == [2, 2, 2, 2, 1, 3, 4, 1]


def test_due_task_that_is_not_named_stays(alias: str) -> None:
    named, other = task(alias), task(alias)
    promote(alias, named)
    assert other.priority == 2
    assert priorities(alias) == [1, 2]


def test_events_own_time_does_not_count(alias: str) -> None:
    made = task(alias, threshold=HOUR)
    publish_task_urgency_promotion(
        user_id=7, task_ids=[made.pk], triggered_at=database_now(alias) + timedelta(days=365)
    )
    drain("task", raise_on_dead=True)
    assert priorities(alias) == [2]


def test_repeated_event_changes_nothing(alias: str) -> None:
    made = task(alias)
    event = records.delivery(
        TaskUrgencyPromoteRequested(user_id=7, task_ids=[made.pk], triggered_at=database_now(alias)), using=alias
    )
    records.handle([event])
    once = records.rows(Task, alias, "priority", "updated_at")
    records.handle([event])
    assert records.rows(Task, alias, "priority", "updated_at") == once


def test_missing_tasks_are_no_error(alias: str) -> None:
    publish_task_urgency_promotion(user_id=7, task_ids=[10**12])
    drain("task", raise_on_dead=True)
    assert TaskOutboxMessage.objects.using(alias).get().status == "consumed"


def test_many_tasks_at_once(alias: str) -> None:
    at = database_now(alias) - HOUR
    Task.objects.using(alias).bulk_create(
        [Task(user_id=7, priority=2, is_completed=False, urgency_threshold_at=at) for _ in range(2_100)]
    )
    promote(alias, *Task.objects.using(alias).order_by("-pk"))
    assert set(priorities(alias)) == {1}


def test_publisher_counts_repeated_ids_once_and_refuses_none(alias: str) -> None:
    publish_task_urgency_promotion(user_id=7, task_ids=[3, 1, 3])
    row = TaskOutboxMessage.objects.using(alias).get()
    assert '"task_ids":[3,1]' in row.payload
    assert (row.message_key, row.event_type) == ("7", "task.urgency.promote.requested")
    with pytest.raises(InvalidEventError, match="task_ids"):
        publish_task_urgency_promotion(user_id=7, task_ids=[])


def test_wrong_payload_is_dead_with_the_reason(alias: str) -> None:
    faults = [
        ('"task_ids":[]', "task_ids"),
        ('"task_ids":[1,1]', "unique"),
        ('"task_ids":[0]', "task_ids"),
        ('"task_ids":"1"', "task_ids"),
    ]
    for instead, _ in faults:
        publish_task_urgency_promotion(user_id=7, task_ids=[1])
        records.spoil(TaskOutboxMessage, alias, written='"task_ids":[1]', instead=instead)
    for (_, named), each in zip(faults, drain("task").dead, strict=True):
        assert named in each.reason
