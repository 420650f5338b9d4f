"""Row and record state an event id: a record is of the row with its id, and of no later row that got its row's id."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from agent_events.agent.events import AgentStateSnapshot
from agent_events.agent.models import AgentOutboxMessage
from agent_events.memory.models import MemoryOutboxMessage
from outbox import publish, publish_many
from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.checks import check_tables
from outbox.consumer.loop import Consumer
from outbox.contrib.shared_table.relocation import Rehoming
from outbox.exceptions import FailedDeliveries, InvalidEventError
from outbox.lifecycle import Status
from outbox.models import RejectedRecord
from outbox.registry.catalog import route_registry, service_models
from outbox.wire.envelope import EVENT_ID_MAX_LENGTH, encode_message
from tests import factories
from tests.factories import get, record, row
from tests.relays import TOPIC, MakeRelay, step_until_idle
from tests.repositories import new_row
from tests.toys import BULK, NOTE, Toys, effect_ids


def snapshot(conversation_id: str = "c-1") -> AgentStateSnapshot:
    return AgentStateSnapshot(conversation_id=conversation_id, user_id=1, phase="plan", snapshot_json="{}")


def record_saying(row_id: int, event_id: str, *, event_type: str = NOTE) -> IncomingRecord:
    """Return a record that states ``event_id`` for a row."""
    envelope = factories.envelope(event_type, event_id=event_id)
    return record(encode_message(envelope, outbox_id=row_id, service="agent", by_reference=True))


def reasons(alias: str) -> list[str]:
    return list(RejectedRecord.objects.using(alias).order_by("id").values_list("reason", flat=True))


def insert_plainly(alias: str, payload: str, *, table: str = factories.TABLE) -> int:
    """Insert a row by the shared columns only, as other software does."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (event_type, service_name, topic, message_key, payload)"
            f" VALUES (%s, 'agent', 't', 'k', %s)",
            [NOTE, payload],
        )
    return AgentOutboxMessage.objects.using(alias).latest("pk").pk


# --- who states one ----------------------------------------------------------------------------------------------


def test_publish_writes_the_event_id_into_its_column(alias: str) -> None:
    event_ids = [publish(snapshot()), *publish_many(snapshot(f"c-{n}") for n in range(5))]

    rows = AgentOutboxMessage.objects.using(alias).order_by("pk")
    assert list(rows.values_list("event_id", flat=True)) == event_ids
    assert [json.loads(each.payload)["event_id"] for each in rows] == event_ids


def test_row_of_other_software_states_none(alias: str) -> None:
    row_id = insert_plainly(alias, '{"event_id": "e-7", "payload": {}}')

    assert get(alias, row_id).event_id == ""


@pytest.mark.parametrize("event_id", ["x" * (EVENT_ID_MAX_LENGTH + 1), "a\x00b"])
def test_event_id_that_the_column_cannot_hold_is_refused(event_id: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        new_row(1, event_id=event_id)

    for part in (NOTE, "'event_id'", repr(event_id[:32]), f"{len(event_id)} characters", "at most 128"):
        assert part in str(refused.value)


def test_longest_event_id_is_kept_whole(alias: str) -> None:
    longest = "🙂" * EVENT_ID_MAX_LENGTH

    factories.repository().insert([new_row(1, event_id=longest)])

    assert AgentOutboxMessage.objects.using(alias).get().event_id == longest


@pytest.mark.parametrize(
    ("column", "in_payload", "stated"),
    [("e-7", "e-7", "e-7"), ("e-7", None, "e-7"), ("e-7", "e-8", "e-7"), ("", "e-8", "e-8"), ("", None, None)],
)
def test_record_and_delivery_state_what_the_row_states(
    alias: str,
    broker: MemoryBroker,
    make_relay: MakeRelay,
    toys: Toys,
    consumer: Consumer,
    column: str,
    in_payload: str | None,
    stated: str | None,
) -> None:
    """Else its own row's consumer would reject the record."""
    envelope = {"event_version": "v2", "payload": {"key": "k", "number": 1}, "event_id": in_payload}
    row_id = row(alias, stored=json.dumps(envelope), event_id=column)
    expected = stated or str(row_id)
    delivered: list[str] = []
    toys.before = lambda deliveries: delivered.extend(each.event_id for each in deliveries)

    step_until_idle(make_relay())
    [sent] = broker.records(TOPIC)
    consumer.handle([sent])

    assert json.loads(sent.value or b"")["event_id"] == expected
    assert (dict(sent.headers)["event_id"], dict(sent.headers)["ce_id"]) == (expected.encode(), expected.encode())
    assert delivered == [expected]
    assert get(alias, row_id).status == Status.CONSUMED
    assert reasons(alias) == []


def test_record_by_reference_states_what_the_row_states(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, consumer: Consumer
) -> None:
    row_id = row(alias, event_id="e-7")

    step_until_idle(make_relay(reference_bytes=1))
    [sent] = broker.records(TOPIC)
    consumer.handle([sent])

    assert (json.loads(sent.value or b"")["event_id"], json.loads(sent.value or b"")["payload"]) == ("e-7", None)
    assert effect_ids(alias) == [row_id]


# --- whose record it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.PENDING, Status.PUBLISHED, Status.CONSUMED, Status.DEAD])
def test_record_of_an_earlier_row_with_the_id_is_rejected_and_names_both(
    alias: str, consumer: Consumer, status: Status
) -> None:
    """A database was restored from a backup: the id was given out again, and the topic still has the old record."""
    row_id = row(alias, status=status, event_id="new")

    consumer.handle([record_saying(row_id, "old")])

    [reason] = reasons(alias)
    assert f"event_id of row {row_id} of {factories.TABLE} is 'new', that of the record is 'old'" in reason
    assert get(alias, row_id).status == status
    assert effect_ids(alias) == []
    assert (consumer.totals.rejected, consumer.totals.duplicates) == (1, 0)


@pytest.mark.parametrize("old_first", [True, False])
def test_record_of_an_earlier_row_does_not_hide_the_rows_own(alias: str, consumer: Consumer, old_first: bool) -> None:
    row_id = row(alias, status=Status.PUBLISHED, event_id="new")
    records = [record_saying(row_id, "old"), record_saying(row_id, "new"), record_saying(row_id, "new")]

    consumer.handle(records if old_first else records[::-1])

    assert effect_ids(alias) == [row_id]
    assert len(reasons(alias)) == 1
    assert (consumer.totals.consumed, consumer.totals.rejected, consumer.totals.duplicates) == (1, 1, 1)


@pytest.mark.parametrize(
    ("column", "said"),
    [("", "any"), ("", None), ("e-7", None), (None, "any"), (None, None), ("e-7", "e-7")],
    ids=["row-none", "neither", "record-none", "row-its-id", "both-its-id", "the-same"],
)
def test_where_one_of_the_two_states_none_the_row_is_matched_by_its_id(
    alias: str, consumer: Consumer, column: str | None, said: str | None
) -> None:
    """None stands for the fallback: the row's id as text, which a database gives out again as it does the id."""
    row_id = row(alias, status=Status.PUBLISHED)
    factories.change(alias, row_id, event_id=str(row_id) if column is None else column)

    consumer.handle([record_saying(row_id, said or str(row_id))])

    assert effect_ids(alias) == [row_id]
    assert reasons(alias) == []


@pytest.mark.parametrize(("column", "said"), [("Event", "event"), ("event", "event "), ("é", "e\u0301")])
def test_event_ids_are_equal_byte_for_byte(alias: str, consumer: Consumer, column: str, said: str) -> None:
    row_id = row(alias, status=Status.PUBLISHED, event_id=column)

    consumer.handle([record_saying(row_id, said)])

    assert len(reasons(alias)) == 1
    assert effect_ids(alias) == []


@pytest.mark.parametrize("said", ["y" * 100_000, "\u202e" * 1_000, "o'\"\x00"])
def test_reason_names_both_however_long_the_records_is(alias: str, consumer: Consumer, said: str) -> None:
    """Anybody may write to a topic."""
    longest = "x" * EVENT_ID_MAX_LENGTH
    row_id = row(alias, status=Status.PUBLISHED, event_id=longest)

    consumer.handle([record_saying(row_id, said)])

    [reason] = reasons(alias)
    assert longest in reason
    assert repr(said)[:100] in reason
    assert reason.endswith("it is of an earlier row with that id")


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_batch_that_fails_is_isolated_without_taking_one_record_for_another(
    alias: str, toys: Toys, consumer: Consumer, event_type: str
) -> None:
    """What is tried again in a row's name is a record of the row, and the others are kept."""
    bad, good = (row(alias, key=key, event_type=event_type, status=Status.PUBLISHED, event_id="new") for key in "ab")
    named: list[int] = []

    def fail(delivery: Any) -> BaseException:
        named.append(delivery.outbox_id)
        return FailedDeliveries([delivery]) if event_type == BULK else ValueError("no")

    toys.fail(bad, fail)
    strangers = [
        record_saying(row_id, "old", event_type=kind) for row_id in (bad, good) for kind in (event_type, "another.type")
    ]
    own = [record_saying(row_id, "new", event_type=event_type) for row_id in (bad, good)]

    consumer.handle([*strangers[:2], *own, *strangers[2:]])

    assert named
    assert effect_ids(alias) == [good]
    assert (get(alias, bad).retry_count, get(alias, bad).status) == (1, Status.PENDING)
    kept = RejectedRecord.objects.using(alias).values_list("offset", flat=True)
    assert sorted(kept) == sorted(each.offset for each in strangers)
    assert consumer.totals.rejected == len(strangers)


# --- what becomes of it ------------------------------------------------------------------------------------------


def test_replayed_row_takes_its_old_record_for_its_own(alias: str, consumer: Consumer) -> None:
    row_id = row(alias, status=Status.DEAD, event_id="e-7")

    factories.repository().replay([row_id])
    consumer.handle([record_saying(row_id, "e-7")])

    assert (get(alias, row_id).event_id, get(alias, row_id).status) == ("e-7", Status.CONSUMED)


def test_rehomed_row_keeps_its_event_id(alias: str) -> None:
    registry = route_registry()
    for event_id in ("e-7", ""):
        AgentOutboxMessage.objects.using(alias).create(
            event_type="memory.extract.requested", message_key="7", payload='{"payload": 1}', event_id=event_id
        )

    list(Rehoming(registry.catalog.route("agent"), registry).run(batch_size=10))

    moved = MemoryOutboxMessage.objects.using(alias).order_by("pk")
    assert list(moved.values_list("event_id", flat=True)) == ["e-7", ""]


# --- the column --------------------------------------------------------------------------------------------------


def test_table_without_the_column_is_an_error(alias: str) -> None:
    table = "without_event_ids"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} AS SELECT * FROM agent_outbox_messages WHERE 1 = 0")
        cursor.execute(f"ALTER TABLE {table} DROP COLUMN event_id")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AgentOutboxMessage._meta, "db_table", table)
            [message] = [each for each in check_tables(databases=[alias]) if each.id == "outbox.E085"]
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"DROP TABLE {table}")
    assert "lacks the columns event_id." in str(message)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_migration_rewrites_no_table(alias: str) -> None:
    """The server refuses an ``ALGORITHM`` that it cannot keep to; rows from before state none."""
    connection: Any = connections[alias]
    loader = MigrationLoader(connection)
    for model in service_models().values():
        label = model._meta.app_label
        before = loader.project_state((label, "0004_interruptions")).apps
        after = loader.project_state((label, "0005_event_id")).apps
        old = before.get_model(label, model.__name__)
        old._meta.db_table = f"old_{label}"
        field = after.get_model(label, model.__name__)._meta.get_field("event_id")
        with connection.schema_editor() as editor:
            editor.create_model(old)
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO old_{label} (event_type, message_key, payload) VALUES ('a.b', 'k', '{{}}')"
                )
            with connection.schema_editor(collect_sql=True) as editor:
                editor.add_field(old, field)
            [statement] = [each.rstrip(";") for each in editor.collected_sql if each.startswith("ALTER")]
            with connection.cursor() as cursor:
                cursor.execute(f"{statement}, ALGORITHM = INSTANT")
                cursor.execute(f"SELECT event_id FROM old_{label}")
                assert cursor.fetchall() == (("",),)
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP TABLE old_{label}")
