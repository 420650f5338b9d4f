"""Rows of other services leave the once shared table: to their owners, in order, once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from agent_events.agent.models import AgentOutboxMessage
from agent_events.memory.models import MemoryOutboxMessage
from agent_events.task.models import TaskOutboxMessage
from outbox.brokers.memory import MemoryBroker
from outbox.contrib.shared_table.relocation import Rehoming
from outbox.coordination.shutdown import StopFlag
from outbox.models import OutboxMessage, RehomedRow
from outbox.registry.catalog import route_registry
from outbox.workers.build import build_relay
from tests.conftest import Configure
from tests.services import require

TASK, MEMORY, OWN = "task.urgency.promote.requested", "memory.extract.requested", "agent.state.snapshot.persist"


def old_row(alias: str, event_type: str, number: int, *, status: str = "pending", **columns: Any) -> int:
    """Insert a row as it lies there from the time of the shared table: without a service's name."""
    made = AgentOutboxMessage.objects.using(alias).create(
        event_type=event_type, message_key="7", payload=f'{{"payload": {number}}}', status=status, **columns
    )
    return int(made.pk)


def rehoming() -> Rehoming:
    registry = route_registry()
    return Rehoming(registry.catalog.route("agent"), registry)


def payloads(model: type[OutboxMessage], alias: str) -> list[str]:
    return list(model.objects.using(alias).order_by("id").values_list("payload", flat=True))


def test_rows_go_to_their_owners_in_order_and_finished_ones_stay(alias: str) -> None:
    for number in range(20):
        old_row(alias, (TASK, MEMORY, OWN)[number % 3], number, retry_count=number)
    published = old_row(alias, TASK, 100, status="published")
    finished = [old_row(alias, TASK, 200, status=status) for status in ("consumed", "dead")]

    moved = [each for batch in rehoming().run(batch_size=4) for each in batch]

    assert payloads(TaskOutboxMessage, alias) == [f'{{"payload": {n}}}' for n in (*range(0, 20, 3), 100)]
    assert payloads(MemoryOutboxMessage, alias) == [f'{{"payload": {n}}}' for n in range(1, 20, 3)]
    assert sum(each.rows for each in moved) == 15
    left = AgentOutboxMessage.objects.using(alias)
    assert set(left.exclude(event_type=OWN).values_list("pk", flat=True)) == set(finished)
    assert not left.filter(pk=published).exists()
    first = TaskOutboxMessage.objects.using(alias).order_by("id").first()
    assert first is not None
    assert (first.service_name, first.topic, first.status) == ("task", "smartflow.task.outbox", "pending")
    assert list(TaskOutboxMessage.objects.using(alias).order_by("id").values_list("retry_count", flat=True)) == [
        *range(0, 20, 3),
        0,
    ]


def test_own_rows_whose_type_is_like_another_services_stay(alias: str) -> None:
    """A collation that ignores case takes them for rows of the other service: they would be moved for ever."""
    own = old_row(alias, TASK.upper(), 1)
    foreign = old_row(alias, TASK, 2)

    moved = [each for batch in rehoming().run(batch_size=4) for each in batch]

    assert [(each.event_type, each.rows) for each in moved] == [(TASK, 1)]
    assert rehoming().survey() == []
    assert list(AgentOutboxMessage.objects.using(alias).values_list("pk", flat=True)) == [own]
    assert foreign != own


def test_survey_counts_and_changes_nothing(alias: str) -> None:
    old_row(alias, TASK, 1)
    old_row(alias, TASK, 2, status="published")
    old_row(alias, OWN, 3)

    found = {(each.event_type, each.owner, each.status): each.rows for each in rehoming().survey()}

    assert found == {(TASK, "task", "pending"): 1, (TASK, "task", "published"): 1}
    assert AgentOutboxMessage.objects.using(alias).count() == 3


def test_stopped_between_batches_it_goes_on_and_moves_nothing_twice(alias: str) -> None:
    for number in range(10):
        old_row(alias, TASK, number)

    next(iter(rehoming().run(batch_size=3)))
    assert TaskOutboxMessage.objects.using(alias).count() == 3
    for _ in rehoming().run(batch_size=3):
        pass

    assert payloads(TaskOutboxMessage, alias) == [f'{{"payload": {n}}}' for n in range(10)]


def test_a_crash_inside_a_batch_moves_nothing(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old_row(alias, TASK, 1)
    moving = rehoming()
    monkeypatch.setattr(moving, "_execute", _crash_at_delete(moving._execute))

    with pytest.raises(ConnectionAbortedError):
        list(moving.run(batch_size=5))

    assert TaskOutboxMessage.objects.using(alias).count() == 0
    assert AgentOutboxMessage.objects.using(alias).count() == 1


@pytest.fixture
def task_elsewhere(database_alias: str, configure: Configure) -> Iterator[tuple[str, str]]:
    """Have the task service live in another database than the others; give both aliases."""
    other = "default" if database_alias != "default" else "mariadb"
    if other != "default":
        require(other)
    configure(services={"task": {"DATABASE": other}})
    yield database_alias, other
    TaskOutboxMessage.objects.using(other).all().delete()
    RehomedRow.objects.using(other).all().delete()


def test_a_crash_between_two_databases_moves_nothing_twice(
    task_elsewhere: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = task_elsewhere
    for number in range(7):
        old_row(source, TASK, number)
    moving = rehoming()
    monkeypatch.setattr(moving, "_execute", _crash_at_delete(moving._execute))
    with pytest.raises(ConnectionAbortedError):
        list(moving.run(batch_size=3))
    assert TaskOutboxMessage.objects.using(target).count() == 3, "the first batch arrived before the crash"
    assert AgentOutboxMessage.objects.using(source).count() == 7, "and its old rows are still there"

    for _ in rehoming().run(batch_size=5):
        pass

    assert payloads(TaskOutboxMessage, target) == [f'{{"payload": {n}}}' for n in range(7)]
    assert AgentOutboxMessage.objects.using(source).count() == 0
    assert RehomedRow.objects.using(target).count() == 0


def test_the_relay_of_the_agent_leaves_rows_of_others_alone(alias: str, broker: MemoryBroker, stop: StopFlag) -> None:
    foreign = old_row(alias, TASK, 1)
    own = old_row(alias, OWN, 2)
    route = route_registry().catalog.route("agent")
    broker.create_topics([route])

    build_relay(route, broker).run(stop, once=True)

    status = dict(AgentOutboxMessage.objects.using(alias).values_list("pk", "status"))
    assert status == {foreign: "pending", own: "published"}


def test_the_command_says_what_it_would_do_and_what_it_did(alias: str) -> None:
    for number in range(3):
        old_row(alias, MEMORY, number)

    dry, real, again = StringIO(), StringIO(), StringIO()
    call_command("rehome_outbox", "--dry-run", stdout=dry)
    assert MemoryOutboxMessage.objects.using(alias).count() == 0
    call_command("rehome_outbox", "--batch-size", "2", stdout=real)
    call_command("rehome_outbox", stdout=again)

    assert "3 rows would move" in dry.getvalue()
    assert "3 rows moved" in real.getvalue()
    assert "memory" in real.getvalue()
    assert "0 rows would move" in again.getvalue()
    assert MemoryOutboxMessage.objects.using(alias).count() == 3


def _crash_at_delete(execute: Any) -> Any:
    def crash(using: str, sql: str, parameters: Any) -> None:
        if sql.startswith("DELETE"):
            connections[using].ensure_connection()
            raise ConnectionAbortedError("as if the process had been killed here")
        execute(using, sql, parameters)

    return crash
