"""A table shared with other software: its column of event types has another name, and other columns no defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from agent_events.agent.models import AgentOutboxMessage
from outbox.admin.filters import DeadFilter, MessageFilter
from outbox.contrib.shared_table.relocation import Rehoming
from outbox.declarations.routes import RouteRegistry, ServiceCatalog
from outbox.models import OutboxMessage, service_route
from outbox.operations.statistics import service_status
from outbox.registry.catalog import service_models
from outbox.storage.dialects import dialect_of
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Failure, NewRow
from outbox.storage.status_rows import StatusRows
from outbox.storage.transitions import insertion
from tests.repositories import FAILURE, UNLIMITED, locked
from tests.shared_rows import SharedOutboxMessage, shared_table

HOUR = timedelta(hours=1)
OWN, FOREIGN = "shared.own", "shared.foreign"


@pytest.fixture
def shared(alias: str) -> Iterator[OutboxRepository]:
    """Return the repository of a service whose table has the column `biz_type`."""
    route = replace(service_route("shared", SharedOutboxMessage), database=alias)
    with shared_table(alias):
        yield OutboxRepository(route, (FOREIGN,))


def insert(repository: OutboxRepository, *events: tuple[str, str]) -> list[int]:
    """Publish (type, key) and return the ids."""
    new = [
        NewRow(event_type=of_type, message_key=key, payload=b'{"payload": 1}', max_retry=3) for of_type, key in events
    ]
    repository.insert(new)
    found = SharedOutboxMessage.objects.using(repository.route.database).order_by("-pk").values_list("pk", flat=True)
    return sorted(found[: len(events)])


def columns_of(alias: str) -> set[str]:
    connection = connections[alias]
    with connection.cursor() as cursor:
        found = connection.introspection.get_table_description(cursor, SharedOutboxMessage._meta.db_table)
    return {column.name for column in found}


def test_rows_go_their_way_whatever_their_type_column_is_called(alias: str, shared: OutboxRepository) -> None:
    assert "biz_type" in columns_of(alias)
    assert "event_type" not in columns_of(alias)
    foreign, first, second = insert(shared, (FOREIGN, "k"), (OWN, "k"), (OWN, "k"))

    claim = shared.claim(shards=None, limit=10, max_length=UNLIMITED)
    behind = shared.claim(shards=None, limit=10, max_length=UNLIMITED, after=(claim.last or (None, 0)))
    assert [(due.id, due.event_type) for due in claim.rows] == [(first, OWN), (second, OWN)]
    assert behind.rows == []
    marked = shared.mark_published([first, second], claimed_at=claim.claimed_at, redeliver_after=HOUR)
    assert marked.count == 2
    assert [row[:2] for row in shared.published(shards=None, limit=9)] == [(first, OWN), (second, OWN)]

    later = locked(shared, second)
    assert later[0].event_type == OWN
    assert shared.existing([foreign])[foreign].event_type == FOREIGN
    assert {key: blocker.id for key, blocker in shared.predecessors(later).blockers.items()} == {"k": first}
    assert shared.mark_consumed([first]) == 1
    assert shared.predecessors(later).blockers == {}, "a foreign row holds up nobody"

    assert shared.redeliver(shards=None, published_before=shared.now() + HOUR, limit=9) == 0
    shared.bury(second, failure=FAILURE, parks_key=False)
    assert SharedOutboxMessage.objects.using(alias).get(pk=second).event_type == OWN


def test_pages_and_numbers_of_such_a_table(alias: str, shared: OutboxRepository) -> None:
    foreign, own, dead = insert(shared, (FOREIGN, "k"), (OWN, "k"), (OWN, "k"))
    shared.bury(dead, failure=Failure("no", "ValueError"), parks_key=False)
    registry = RouteRegistry(ServiceCatalog([shared.route, service_route("other")]), tables_were_shared=True)
    registry.register(OWN, "shared")
    registry.register(FOREIGN, "other")

    assert [each.position.id for each in found_by(MessageFilter(event_type=OWN), shared)] == [dead, own]
    assert [each.position.id for each in found_by(MessageFilter(event_type=FOREIGN, key="k"), shared)] == [foreign]
    scan = DeadFilter(event_type=OWN).scan(shared.route)
    assert [each.position.id for each in scan.read(None, upward=False, limit=9).rows] == [dead]
    assert service_status(shared.route, registry, ttl=HOUR).foreign.value == 1
    rows = StatusRows(shared.route, (FOREIGN,))
    assert not rows.is_stalled(longer_than=HOUR, redeliver_after=HOUR)
    assert rows.oldest_due_age() is not None
    [misplaced] = Rehoming(shared.route, registry).survey()
    assert (misplaced.event_type, misplaced.owner, misplaced.rows) == (FOREIGN, "other", 1)


def found_by(asked: MessageFilter, shared: OutboxRepository) -> list[Any]:
    scans = asked.scans(shared.route).values()
    return [row for scan in scans for row in scan.read(None, upward=False, limit=9).rows]


def test_rows_that_move_keep_their_type_from_one_column_name_to_the_other(alias: str, shared: OutboxRepository) -> None:
    insert(shared, (FOREIGN, "k"))
    owner = replace(service_route("agent"), database=alias)
    registry = RouteRegistry(ServiceCatalog([shared.route, owner]))
    registry.register(OWN, "shared")
    registry.register(FOREIGN, "agent")

    for _ in Rehoming(shared.route, registry).run(batch_size=5):
        pass

    moved = AgentOutboxMessage.objects.using(alias).get()
    assert (moved.event_type, moved.service_name, moved.status) == (FOREIGN, "agent", "pending")

    back = RouteRegistry(ServiceCatalog([owner, shared.route]))
    back.register(FOREIGN, "shared")
    for _ in Rehoming(owner, back).run(batch_size=5):
        pass
    assert SharedOutboxMessage.objects.using(alias).get().event_type == FOREIGN


@pytest.mark.parametrize("model", [SharedOutboxMessage, *service_models().values()])
def test_an_insert_names_every_column(model: type[OutboxMessage]) -> None:
    """But the two that the database makes."""
    given = dict.fromkeys(("service_name", "topic", "event_type", "message_key", "payload", "max_retry"), "%s")
    route = service_route(model.service, model)

    statement, one_row = insertion(route, dialect_of(connections["default"]), given)

    named = statement.partition("(")[2].partition(")")[0].split(", ")
    assert len(named) == len(set(named))
    assert set(named) == {str(each.column) for each in model._meta.local_concrete_fields} - {"id", "shard"}
    assert one_row.count("%s") == len(given)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_publishing_needs_no_default_of_the_database(alias: str, shared: OutboxRepository) -> None:
    """As an ORM leaves a table whose models state none."""
    table = SharedOutboxMessage._meta.db_table
    with connections[alias].cursor() as cursor:
        named = [
            str(each.column)
            for each in SharedOutboxMessage._meta.local_concrete_fields
            if each.column not in {"id", "shard"} and each.has_db_default()
        ]
        cursor.execute(f"ALTER TABLE {table} {', '.join(f'ALTER COLUMN {name} DROP DEFAULT' for name in named)}")

    [row_id] = insert(shared, (OWN, "k"))

    row = SharedOutboxMessage.objects.using(alias).get(pk=row_id)
    assert (row.status, row.retry_count, row.put_back_count, row.parks_key) == ("pending", 0, 0, False)
    assert row.next_retry_at == row.created_at == row.updated_at
    assert [due.id for due in shared.claim(shards=None, limit=9, max_length=0).rows] == [row_id]
