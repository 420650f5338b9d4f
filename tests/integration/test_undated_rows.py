"""Columns of times that hold no time, as other software may write them: NULL, zero dates, infinity.

Such a value says no more than NULL. A row without a due time is due now. Nothing of it stops or delays another row.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connections

from agent_events.agent.models import AgentOutboxMessage
from agent_events.task.models import TaskOutboxMessage
from outbox.brokers.memory import MemoryBroker
from outbox.contrib.shared_table.relocation import Rehoming
from outbox.declarations.routes import ServiceRoute
from outbox.operations.statistics import service_status
from outbox.registry.catalog import route_registry
from outbox.storage.status_rows import StatusRows
from tests import factories
from tests.relays import MakeRelay, step_until_idle
from tests.toys import Toys, effect_ids

TASK = "task.urgency.promote.requested"
MINUTE = timedelta(minutes=1)

NO_TIMES = {
    "mariadb": ("0000-00-00 00:00:00", "2026-00-00 00:00:00"),
    "mysql": ("0000-00-00 00:00:00", "2026-00-00 00:00:00"),
    "postgres": ("-infinity", "0044-03-15 00:00:00+00 BC"),
    "default": ("0000-00-00 00:00:00", ""),
}
NULLABLE = ("next_retry_at", "published_at", "consumed_at", "dead_at")
CASES = [
    *(
        pytest.param(alias, column, value, id=f"{alias}-{column}-{value or 'empty'}")
        for alias, values in NO_TIMES.items()
        for column in (*NULLABLE, "created_at", "updated_at")
        for value in values
    ),
    *(pytest.param(alias, column, None, id=f"{alias}-{column}-NULL") for alias in NO_TIMES for column in NULLABLE),
]
each_column = pytest.mark.parametrize(("database_alias", "column", "value"), CASES, indirect=["database_alias"])
each_due_time = pytest.mark.parametrize(
    ("database_alias", "value"),
    [(alias, value) for alias, values in NO_TIMES.items() for value in (None, values[0])],
    indirect=["database_alias"],
)

Work = Callable[[], None]


def write(alias: str, row_id: int, column: str, value: str | None, *, table: str = factories.TABLE) -> None:
    """Set a column as software does whose session lets everything through."""
    with connections[alias].cursor() as cursor:
        if connections[alias].vendor == "mysql":
            cursor.execute("SET @usual = @@SESSION.sql_mode, SESSION sql_mode = ''")
        cursor.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s", [value, row_id])
        if connections[alias].vendor == "mysql":
            cursor.execute("SET SESSION sql_mode = @usual")


@pytest.fixture
def work(alias: str, broker: MemoryBroker, toys: Toys, make_relay: MakeRelay) -> Work:
    """Return a function that lets a relay and a consumer work until nothing is left that is due."""
    relay = make_relay(batch_size=2)
    consumer = factories.consumer(alias, toys, broker=broker, redeliver_after=timedelta(hours=1))

    def until_idle() -> None:
        for _ in range(20):
            factories.make_due(alias)
            step_until_idle(relay)
            while consumer.step(10):
                pass

    return until_idle


@each_column
@pytest.mark.parametrize("status", ["pending", "published"])
def test_row_and_its_neighbours_are_delivered_in_the_order_of_their_keys(
    alias: str, column: str, value: str | None, status: str, toys: Toys, work: Work, broker: MemoryBroker
) -> None:
    ids = factories.rows(alias, 9, key=lambda number: f"k{number % 3}")
    odd = ids[3]
    if status == "published":  # and its record is lost: the consumer that meets its successor has it sent again
        factories.change(alias, odd, status="published", updated_at=factories.database_now(alias) - 60 * MINUTE)
    write(alias, odd, column, value)
    work()
    assert factories.status_counts(alias) == {"consumed": 9}
    for key in range(3):
        assert effect_ids(alias, key=f"k{key}") == ids[key::3]


@each_column
def test_commands_and_figures_pass_over_it(alias: str, column: str, value: str | None) -> None:
    registry = route_registry()
    route = registry.catalog.route("agent")
    pending = factories.row(alias, due_in=-MINUTE)
    write(alias, pending, column, value)
    service_status(route, registry, ttl=MINUTE)
    age = StatusRows(route).oldest_due_age()
    assert age is not None
    assert age <= 2 * MINUTE

    long_ago = factories.database_now(alias) - timedelta(days=30)
    consumed = factories.rows(alias, 3, status="consumed", created_at=long_ago, consumed_at=long_ago)
    write(alias, consumed[1], column, value)
    call_command("outbox_prune", "agent", "--older-than", "7d", stdout=StringIO())
    left = {consumed[1]} if column == "consumed_at" else set()
    assert set(factories.statuses(alias)) == {pending, *left}


@each_column
def test_row_of_another_service_moves_to_its_owner(alias: str, column: str, value: str | None) -> None:
    _, odd, _ = factories.rows(alias, 3, event_type=TASK)
    write(alias, odd, column, value)
    registry = route_registry()
    for _ in Rehoming(registry.catalog.route("agent"), registry).run(batch_size=2):
        pass
    assert not AgentOutboxMessage.objects.using(alias).exists()
    moved = list(TaskOutboxMessage.objects.using(alias).order_by("id"))
    assert len(moved) == 3
    for row in moved:
        assert row.next_retry_at is not None
        assert abs(row.created_at - moved[0].created_at) < MINUTE


def is_stalled(route: ServiceRoute, *, longer_than: timedelta) -> bool:
    return StatusRows(route).is_stalled(longer_than=longer_than, redeliver_after=5 * MINUTE)


@each_due_time
@pytest.mark.parametrize("status", ["pending", "published"])
def test_row_without_a_due_time_is_stalled_after_the_usual_time(alias: str, value: str | None, status: str) -> None:
    route = route_registry().catalog.route("agent")
    row_id = factories.row(alias, status=status)
    write(alias, row_id, "next_retry_at", value)
    assert not is_stalled(route, longer_than=5 * MINUTE)
    then = factories.database_now(alias) - 6 * MINUTE
    factories.change(alias, row_id, updated_at=then, published_at=then if status == "published" else None)
    assert is_stalled(route, longer_than=5 * MINUTE)
    assert not is_stalled(route, longer_than=7 * MINUTE)


@each_due_time
def test_many_rows_without_a_due_time_are_all_sent(alias: str, value: str | None, toys: Toys, work: Work) -> None:
    """More than one claim takes, before and between others that are dated."""
    ids = factories.rows(alias, 10, key=str)
    for row_id in ids[::2]:
        write(alias, row_id, "next_retry_at", value)
    work()
    assert sorted(effect_ids(alias)) == ids


@pytest.mark.parametrize("database_alias", ["postgres"], indirect=True)
def test_row_that_is_due_in_infinity_waits_and_holds_its_own_key_only(
    alias: str, toys: Toys, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    never, behind, other = (factories.row(alias, key=key) for key in ("k", "k", "other"))
    write(alias, never, "next_retry_at", "infinity")
    step_until_idle(make_relay())
    consumer = factories.consumer(alias, toys, broker=broker)
    while consumer.step(10):
        pass
    assert effect_ids(alias) == [other]
    waits = AgentOutboxMessage.objects.using(alias).filter(status="pending")
    assert set(waits.values_list("pk", flat=True)) == {never, behind}
    assert waits.get(pk=behind).retry_count == 0
