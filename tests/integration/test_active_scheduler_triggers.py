"""Triggers become previews: each once, with the user told of it in the same transaction; failures are noted on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.db import transaction

from agent_events.active_scheduler import failures, triggers
from agent_events.active_scheduler.candidates import Candidate, Trigger
from agent_events.active_scheduler.events import ActiveScheduleTriggered, publish_active_schedule_trigger
from agent_events.active_scheduler.models import (
    FINAL_STATUSES,
    ActiveSchedulePreview,
    ActiveSchedulerOutboxMessage,
    ActiveScheduleTrigger,
    TriggerStatus,
)
from agent_events.notification.events import FeishuNotificationRequested, dedupe_key
from agent_events.notification.models import NotificationOutboxMessage
from agent_events.task.models import Task
from outbox.testing import captured_events, drain
from tests import records
from tests.factories import database_now

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


@pytest.fixture
def use_builder(settings: Any) -> Callable[[str], None]:
    """Return a function that configures a builder of this module."""

    def use(name: str) -> None:
        settings.SMARTFLOW = {"PREVIEW_BUILDER": f"{__name__}.{name}"}

    return use


def build_two(trigger: Trigger) -> Sequence[Candidate]:
    return [
        Candidate(title="First", summary="Do it now", details={"now": trigger.now.isoformat()}),
        Candidate(title="Second", summary="Do it later", details={"of": dict(trigger.payload)}),
    ]


def build_nothing(trigger: Trigger) -> Sequence[Candidate]:
    return []


def build_wrongly(trigger: Trigger) -> Sequence[Candidate]:
    # The status is there to be read, and everything written is rolled back.
    assert ActiveScheduleTrigger.objects.get(trigger_id=trigger.trigger_id).status == "processing"
    raise RuntimeError(f"no idea for {trigger.trigger_id} \x00")


def publish_trigger(trigger_id: str = "t-1", **fields: Any) -> str:
    return publish_active_schedule_trigger(
        **(
            {
                "trigger_id": trigger_id,
                "user_id": 7,
                "trigger_type": "important_urgent_task",
                "source": "worker_due_job",
                "target_type": "task_pool",
                "target_id": 1,
            }
            | fields
        )
    )


def trigger_row(alias: str, trigger_id: str = "t-1", **columns: Any) -> ActiveScheduleTrigger:
    return ActiveScheduleTrigger.objects.using(alias).create(
        **(
            {
                "trigger_id": trigger_id,
                "user_id": 7,
                "trigger_type": "important_urgent_task",
                "source": "worker_due_job",
                "target_type": "task_pool",
                "target_id": 1,
            }
            | columns
        )
    )


def task(alias: str, *, threshold: timedelta | None = -HOUR, **columns: Any) -> Task:
    at = None if threshold is None else database_now(alias) + threshold
    return Task.objects.using(alias).create(**({"user_id": 7, "title": "Write", "urgency_threshold_at": at} | columns))


def trigger(alias: str, trigger_id: str = "t-1") -> ActiveScheduleTrigger:
    return ActiveScheduleTrigger.objects.using(alias).get(trigger_id=trigger_id)


# --- from trigger to preview to notification ---------------------------------------------------------------------


def test_chain_from_trigger_to_preview_to_notification(alias: str) -> None:
    due = task(alias)
    publish_trigger(target_id=due.pk, trace_id="trace-1")
    before = database_now(alias)
    with captured_events("notification") as events:
        drain("active-scheduler", raise_on_dead=True)
    preview = ActiveSchedulePreview.objects.using(alias).get()
    assert (preview.trigger_id, preview.user_id, preview.target_type, preview.target_id) == (
        "t-1",
        7,
        "task_pool",
        due.pk,
    )
    (candidate,) = msgspec.json.decode(preview.candidates_json)
    assert candidate["title"] == "Write"
    assert candidate["details"]["task_id"] == due.pk
    ended = trigger(alias)
    assert (ended.status, ended.preview_id, ended.last_error) == ("preview_generated", preview.preview_id, None)
    (event,) = events.of(FeishuNotificationRequested)
    assert (event.user_id, event.trigger_id, event.preview_id) == (7, "t-1", preview.preview_id)
    assert (event.trigger_type, event.target_type, event.target_id) == ("important_urgent_task", "task_pool", due.pk)
    assert event.target_url == f"/schedule-adjust/{preview.preview_id}"
    assert event.summary_text == preview.summary == candidate["summary"]
    assert event.trace_id == "trace-1"
    assert before <= event.requested_at <= database_now(alias)
    assert event.dedupe_key == dedupe_key(
        user_id=7, trigger_type="important_urgent_task", requested_at=event.requested_at
    )
    row = NotificationOutboxMessage.objects.using(alias).get()
    assert (row.message_key, row.status) == ("7", "pending")


def test_trigger_that_nobody_recorded_is_recorded_from_its_event(
    alias: str, use_builder: Callable[[str], None]
) -> None:
    use_builder("build_nothing")
    publish_trigger(
        trigger_type="unfinished_feedback",
        target_id=0,
        source="user_feedback",
        feedback_id="f-1",
        idempotency_key="i-1",
        dedupe_key="d-1",
        payload={"note": "日程"},
    )
    drain("active-scheduler", raise_on_dead=True)
    row = trigger(alias)
    assert (row.user_id, row.trigger_type, row.source) == (7, "unfinished_feedback", "user_feedback")
    assert (row.target_type, row.target_id, row.feedback_id) == ("task_pool", 0, "f-1")
    assert (row.idempotency_key, row.dedupe_key, row.is_mock_time, row.mock_now) == ("i-1", "d-1", False, None)
    assert row.payload_json == '{"note":"日程"}'


def test_builder_of_the_project_is_used(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    trigger_row(alias)
    publish_trigger(payload={"a": 1})
    with captured_events("notification") as events:
        drain("active-scheduler", raise_on_dead=True)
    preview = ActiveSchedulePreview.objects.using(alias).get()
    candidates = msgspec.json.decode(preview.candidates_json)
    assert [candidate["title"] for candidate in candidates] == ["First", "Second"]
    assert candidates[1]["details"] == {"of": {"a": 1}}
    assert preview.summary == "Do it now"
    assert events.of(FeishuNotificationRequested)[0].summary_text == "Do it now"


def test_mock_time_replaces_the_clock(alias: str, use_builder: Callable[[str], None]) -> None:
    moment = datetime.fromisoformat("2031-05-06T07:08:09+00:00")
    use_builder("build_two")
    publish_trigger(mock_now=moment)
    with captured_events("notification") as events:
        drain("active-scheduler", raise_on_dead=True)
    preview = ActiveSchedulePreview.objects.using(alias).get()
    assert msgspec.json.decode(preview.candidates_json)[0]["details"]["now"] == moment.isoformat()
    assert events.of(FeishuNotificationRequested)[0].requested_at == moment
    assert trigger(alias).mock_now == moment


# --- what there is to propose ------------------------------------------------------------------------------------


def test_task_that_is_due_by_the_mock_time_is_proposed(alias: str) -> None:
    due = task(alias, threshold=24 * HOUR)
    publish_trigger(target_id=due.pk, mock_now=database_now(alias) + 25 * HOUR)
    drain("active-scheduler", raise_on_dead=True)
    assert trigger(alias).status == "preview_generated"


def test_deadline_counts_where_there_is_no_threshold(alias: str) -> None:
    due = task(alias, threshold=None, deadline_at=database_now(alias) - HOUR)
    publish_trigger(target_id=due.pk)
    drain("active-scheduler", raise_on_dead=True)
    assert trigger(alias).status == "preview_generated"


def test_trigger_is_closed_when_there_is_nothing_to_propose(alias: str) -> None:
    targets = [
        {"target_id": task(alias, threshold=HOUR).pk},
        {"target_id": task(alias, threshold=None).pk},
        {"target_id": task(alias, is_completed=True).pk},
        {"target_id": task(alias, user_id=8).pk},
        # The default knows tasks only.
        {"target_id": task(alias).pk, "target_type": "schedule_event"},
        {"target_id": task(alias).pk, "target_type": "task_item"},
        {"target_id": 0, "trigger_type": "unfinished_feedback"},
        {"target_id": 10**12},
    ]
    for number, target in enumerate(targets):
        publish_trigger(f"t-{number}", **target)
    drain("active-scheduler", raise_on_dead=True)
    assert records.rows(ActiveScheduleTrigger, alias, "status", "preview_id") == [("closed", "")] * len(targets)
    assert not ActiveSchedulePreview.objects.using(alias).exists()
    assert not NotificationOutboxMessage.objects.using(alias).exists()


# --- once --------------------------------------------------------------------------------------------------------


def test_trigger_that_has_ended_stays_as_it_is(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    columns = ("trigger_id", "status", "preview_id", "last_error", "updated_at")
    for status in FINAL_STATUSES:
        trigger_row(alias, status.value, status=status, preview_id="p-1", last_error="as it was")
        publish_trigger(status.value, user_id=8)
    before = records.rows(ActiveScheduleTrigger, alias, *columns)
    drain("active-scheduler", raise_on_dead=True)
    assert records.rows(ActiveScheduleTrigger, alias, *columns) == before
    assert not ActiveSchedulePreview.objects.using(alias).exists()
    assert not NotificationOutboxMessage.objects.using(alias).exists()
    assert set(records.rows(ActiveSchedulerOutboxMessage, alias, "status")) == {"consumed"}


def test_unfinished_trigger_is_worked_on(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    for status in ("pending", "processing", "failed"):
        trigger_row(alias, status, status=status, last_error="earlier")
        publish_trigger(status)
    drain("active-scheduler", raise_on_dead=True)
    assert records.rows(ActiveScheduleTrigger, alias, "status", "last_error") == [("preview_generated", None)] * 3


def test_repeated_event_changes_nothing(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    publish_trigger()
    publish_trigger()
    drain("active-scheduler", raise_on_dead=True)
    assert ActiveSchedulePreview.objects.using(alias).count() == 1
    assert NotificationOutboxMessage.objects.using(alias).count() == 1


@pytest.mark.parametrize("key", ["idempotency_key", "dedupe_key"])
def test_repeat_of_an_earlier_trigger_reuses_its_preview(
    alias: str, key: str, use_builder: Callable[[str], None]
) -> None:
    use_builder("build_two")
    publish_trigger("t-1", **{key: "once"})
    publish_trigger("t-2", **{key: "once"})
    with captured_events("notification") as events:
        drain("active-scheduler", raise_on_dead=True)
    preview = ActiveSchedulePreview.objects.using(alias).get()
    assert (
        records.rows(ActiveScheduleTrigger, alias, "status", "preview_id")
        == [("preview_generated", preview.preview_id)] * 2
    )
    assert [event.preview_id for event in events.of(FeishuNotificationRequested)] == [preview.preview_id] * 2


def test_other_triggers_get_previews_of_their_own(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    others = [{}, {"user_id": 8}, {"target_id": 2}, {"trigger_type": "unfinished_feedback"}, {"dedupe_key": "Once"}]
    for number, other in enumerate(others):
        publish_trigger(f"t-{number}", **({"dedupe_key": "once"} | other))
    drain("active-scheduler", raise_on_dead=True)
    assert ActiveSchedulePreview.objects.using(alias).count() == len(others)


def test_triggers_without_keys_are_no_repeats(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    for trigger_id in ("t-1", "t-2"):
        publish_trigger(trigger_id, dedupe_key="", idempotency_key="")
    drain("active-scheduler", raise_on_dead=True)
    assert ActiveSchedulePreview.objects.using(alias).count() == 2


def test_preview_that_is_there_is_reused(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_wrongly")
    trigger_row(alias, status="processing")
    ActiveSchedulePreview.objects.using(alias).create(
        preview_id="p-1",
        trigger_id="t-1",
        user_id=7,
        trigger_type="important_urgent_task",
        target_type="task_pool",
        target_id=1,
        summary="As before",
        candidates_json="[]",
    )
    publish_trigger()
    with captured_events("notification") as events:
        drain("active-scheduler", raise_on_dead=True)
    assert (trigger(alias).status, trigger(alias).preview_id) == ("preview_generated", "p-1")
    assert events.of(FeishuNotificationRequested)[0].summary_text == "As before"


# --- contradictions ----------------------------------------------------------------------------------------------


def test_trigger_is_rejected_when_its_event_contradicts_it(alias: str, use_builder: Callable[[str], None]) -> None:
    use_builder("build_two")
    contradictions = [
        ({"user_id": 8}, "user_id is 8 in the event and 7 in the trigger"),
        ({"trigger_type": "unfinished_feedback"}, "trigger_type is 'unfinished_feedback' in the event"),
        ({"target_type": "task_item"}, "target_type is 'task_item' in the event"),
        ({"target_id": 2}, "target_id is 2 in the event and 1 in the trigger"),
    ]
    for number, (other, _) in enumerate(contradictions):
        trigger_row(alias, f"t-{number}")
        publish_trigger(f"t-{number}", **other)
    drain("active-scheduler", raise_on_dead=True)
    for number, (_, reason) in enumerate(contradictions):
        row = trigger(alias, f"t-{number}")
        assert row.status == "rejected"
        assert reason in row.last_error
    assert set(records.rows(ActiveSchedulerOutboxMessage, alias, "status")) == {"consumed"}
    assert not ActiveSchedulePreview.objects.using(alias).exists()
    assert not NotificationOutboxMessage.objects.using(alias).exists()


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "known by its event only"])
def test_failure_is_noted_and_a_later_success_ends_it(
    alias: str, use_builder: Callable[[str], None], recorded: bool
) -> None:
    if recorded:
        trigger_row(alias)
    use_builder("build_wrongly")
    publish_trigger()
    assert drain("active-scheduler").retried == 1
    row = trigger(alias)
    assert (row.status, row.last_error) == ("failed", "RuntimeError: no idea for t-1 \\x00")
    assert not ActiveSchedulePreview.objects.using(alias).exists()
    message = ActiveSchedulerOutboxMessage.objects.using(alias).get()
    assert (message.status, message.retry_count) == ("pending", 1)
    use_builder("build_two")
    drain("active-scheduler", ignore_backoff=True, raise_on_dead=True)
    row = trigger(alias)
    assert (row.status, row.last_error) == ("preview_generated", None)
    assert NotificationOutboxMessage.objects.using(alias).count() == 1


def test_failure_to_publish_undoes_the_preview_and_is_noted(
    alias: str, use_builder: Callable[[str], None], configure: Callable[..., None]
) -> None:
    use_builder("build_two")
    publish_trigger()
    configure(MAX_PAYLOAD_BYTES=100)
    assert drain("active-scheduler").retried == 1
    row = trigger(alias)
    assert row.status == "failed"
    assert row.last_error.startswith("PayloadTooLargeError: ")
    assert not ActiveSchedulePreview.objects.using(alias).exists()


def test_last_failure_is_noted_when_the_event_dies(
    alias: str, use_builder: Callable[[str], None], configure: Callable[..., None]
) -> None:
    configure(RETRY_MAX_ATTEMPTS=2)
    use_builder("build_wrongly")
    publish_trigger()
    assert len(drain("active-scheduler", ignore_backoff=True).dead) == 1
    assert trigger(alias).status == "failed"


def test_failure_never_overwrites_a_trigger_that_has_ended(alias: str) -> None:
    publish_trigger()
    message = ActiveSchedulerOutboxMessage.objects.using(alias).get()
    for status in FINAL_STATUSES:
        row = trigger_row(alias, status=status, last_error="as it was")
        row.refresh_from_db()  # MySQL's INSERT returns no columns
        failures.note_retry(
            "active-scheduler", outbox_id=message.pk, event_type=message.event_type, error=RuntimeError("late")
        )
        failures.note_burial("active-scheduler", outbox_id=message.pk, event_type=message.event_type, reason="late")
        after = trigger(alias)
        assert (after.status, after.last_error, after.updated_at) == (status, "as it was", row.updated_at)
        after.delete()


def test_failure_that_comes_while_a_success_is_not_committed_yet_is_forgotten(alias: str) -> None:
    """The note waits for the lock of the attempt that succeeds, and finds the trigger ended."""
    records.require_concurrent_writers(alias)
    trigger_row(alias)
    with transaction.atomic(using=alias):
        triggers.lock(_event(), using=alias)
        other = records.in_thread(alias, lambda: triggers.note_failure("t-1", "late", using=alias))
        records.wait_until_somebody_waits(alias, for_table="active_schedule_triggers")
        triggers.move("t-1", TriggerStatus.CLOSED, using=alias)
    assert other.result(timeout=20) is False
    assert (trigger(alias).status, trigger(alias).last_error) == ("closed", None)


def test_wrong_payload_is_dead_with_the_reason_which_is_noted(alias: str) -> None:
    faults = [
        ('"source":"worker_due_job"', '"source":"api_dry_run"', "api_dry_run"),
        ('"trigger_type":"important_urgent_task"', '"trigger_type":"whim"', "whim"),
        ('"target_type":"task_pool"', '"target_type":"habit"', "habit"),
        ('"target_id":1', '"target_id":0', "target_id"),
        ('"is_mock_time":false', '"is_mock_time":true', "mock_now"),
        ('"event_version":"1"', '"event_version":"2"', "'2'"),
    ]
    for number, (written, instead, _) in enumerate(faults):
        for trigger_id in (f"recorded-{number}", f"unknown-{number}"):
            publish_trigger(trigger_id)
            records.spoil(ActiveSchedulerOutboxMessage, alias, written=written, instead=instead)
        trigger_row(alias, f"recorded-{number}")
    dead = drain("active-scheduler").dead
    assert len(dead) == 2 * len(faults)
    for number, (_, _, named) in enumerate(faults):
        assert named in dead[2 * number].reason
        noted = trigger(alias, f"recorded-{number}")
        assert noted.status == "failed"
        assert named in noted.last_error
    # Nobody can say what the others were.
    assert ActiveScheduleTrigger.objects.using(alias).count() == len(faults)


def test_row_that_is_no_envelope_is_dead_and_harms_no_trigger(alias: str) -> None:
    trigger_row(alias)
    publish_trigger()
    ActiveSchedulerOutboxMessage.objects.using(alias).update(payload="garbage")
    assert len(drain("active-scheduler").dead) == 1
    assert trigger(alias).status == "pending"


def _event() -> ActiveScheduleTriggered:
    return ActiveScheduleTriggered(
        trigger_id="t-1",
        user_id=7,
        trigger_type="important_urgent_task",
        source="worker_due_job",
        target_type="task_pool",
        target_id=1,
        is_mock_time=False,
        requested_at=datetime.fromisoformat("2026-03-01T08:30:00+00:00"),
    )
