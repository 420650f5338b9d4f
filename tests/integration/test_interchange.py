"""Rows and records in exactly the shape that the Go services write and read, made without our code, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import connections

from agent_events.active_scheduler.models import ActiveSchedulePreview, ActiveScheduleTrigger
from agent_events.agent.models import (
    AgentChat,
    AgentOutboxMessage,
    AgentStateSnapshotRecord,
    AgentTimelineEvent,
    ChatHistory,
    TokenLedgerEntry,
)
from agent_events.memory.models import MemoryJob
from agent_events.notification.models import NotificationOutboxMessage, NotificationRecord
from agent_events.task.models import Task
from outbox import publish
from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.shutdown import StopFlag
from outbox.declarations.contracts import contracts
from outbox.registry.catalog import route_registry, service_models
from outbox.workers.build import build_consumer, build_relay
from tests import notifications, records
from tests.conftest import SERVICES
from tests.factories import database_now

FIXTURES = Path(__file__).parent.parent / "fixtures" / "interchange"
EVENTS: list[dict[str, Any]] = json.loads((FIXTURES / "events.json").read_text(encoding="utf-8"))
BY_TYPE = pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["event_type"])


@pytest.fixture
def alias(alias: str) -> Iterator[str]:
    yield alias
    records.empty(alias)
    notifications.empty(alias)


class StrictRow(msgspec.Struct, forbid_unknown_fields=True):
    """The payload column as a strict reader knows it: these fields, all of them, and no other."""

    event_id: str
    event_type: str
    event_version: str
    aggregate_id: str
    payload: dict[str, Any]


class StrictMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A record's value as a strict reader knows it."""

    outbox_id: int
    event_id: str
    event_type: str
    event_version: str
    service_name: str
    aggregate_id: str
    payload: dict[str, Any]


def insert_as_go(alias: str, event: dict[str, Any], *, status: str = "pending") -> int:
    """Insert a row with the shared columns only, as another program does."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {event['table']} (event_type, service_name, topic, message_key, payload, status,"
            " retry_count, max_retry, next_retry_at, last_error, published_at, consumed_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, 0, 20, NULL, NULL, NULL, NULL)",
            [
                event["event_type"],
                event["service"],
                event["topic"],
                event["message_key"],
                json.dumps(event["payload"], ensure_ascii=False),
                status,
            ],
        )
        cursor.execute(f"SELECT MAX(id) FROM {event['table']}")
        return int(cursor.fetchone()[0])


def status_of(alias: str, event: dict[str, Any], row_id: int) -> tuple[str, str | None]:
    row = service_models()[event["service"]].objects.using(alias).get(pk=row_id)
    return row.status, row.last_error


def go_record(event: dict[str, Any], row_id: int) -> IncomingRecord:
    """Return the record that the Go relay sends for a row."""
    value = {"outbox_id": row_id, "service_name": event["service"], **event["payload"]}
    return IncomingRecord(
        topic=event["topic"],
        partition=0,
        offset=row_id,
        key=event["message_key"].encode(),
        value=json.dumps(value).encode(),
    )


@BY_TYPE
def test_a_row_that_go_wrote_is_relayed_and_consumed(
    alias: str, broker: MemoryBroker, stop: StopFlag, event: dict[str, Any]
) -> None:
    row_id = insert_as_go(alias, event)
    route = route_registry().catalog.route(event["service"])
    broker.create_topics([route])

    build_relay(route, broker).run(stop, once=True)
    build_consumer(route, broker).run(stop, max_events=1)

    assert status_of(alias, event, row_id) == ("consumed", None)


@BY_TYPE
def test_a_record_that_go_sent_is_consumed(alias: str, broker: MemoryBroker, event: dict[str, Any]) -> None:
    row_id = insert_as_go(alias, event, status="published")
    consumer = build_consumer(route_registry().catalog.route(event["service"]), broker)

    consumer.handle([go_record(event, row_id)])

    assert status_of(alias, event, row_id) == ("consumed", None)
    assert consumer.totals.rejected == 0


@BY_TYPE
def test_what_we_write_holds_no_field_that_a_strict_reader_does_not_know(
    alias: str, broker: MemoryBroker, stop: StopFlag, event: dict[str, Any]
) -> None:
    contract = contracts.get(event["event_type"])
    payload = contract.decode(json.dumps(event["payload"]["payload"]).encode(), version=contract.version)
    event_id = publish(payload)
    route = route_registry().catalog.route(event["service"])
    broker.create_topics([route])
    build_relay(route, broker).run(stop, once=True)

    row = service_models()[event["service"]].objects.using(alias).get()
    stored = msgspec.json.decode(row.payload, type=StrictRow)
    assert (row.service_name, row.topic, row.message_key) == (event["service"], event["topic"], event["message_key"])
    assert stored.event_id == event_id
    assert stored.event_version == event["payload"]["event_version"]
    assert stored.aggregate_id == event["payload"]["aggregate_id"]
    assert set(stored.payload) == set(event["payload"]["payload"])

    (record,) = broker.subscribe(route, client_id="go").receive(max_records=10, timeout=timedelta(seconds=1))
    assert record.key == event["message_key"].encode()
    message = msgspec.json.decode(record.value or b"", type=StrictMessage)
    assert (message.outbox_id, message.service_name) == (row.pk, event["service"])
    assert (message.event_id, message.payload) == (stored.event_id, stored.payload)


# --- rows of plain SQL -------------------------------------------------------------------------------------------


def load_as_go(alias: str) -> None:
    """Run the file of INSERTs by a connection of the bare driver."""
    import MySQLdb

    config = connections[alias].settings_dict
    connection = MySQLdb.connect(
        host=config["HOST"],
        port=int(config["PORT"]),
        user=config["USER"],
        password=config["PASSWORD"],
        database=config["NAME"],
        charset="utf8mb4",
    )
    try:
        cursor = connection.cursor()
        cursor.execute((FIXTURES / "rows.sql").read_text(encoding="utf-8"))
        while cursor.nextset() is not None:
            pass
        connection.commit()
    finally:
        connection.close()


def work_off(broker: MemoryBroker, stop: StopFlag) -> None:
    """Run the relay and then the consumer of each service once; those that another one publishes for come later."""
    for service in SERVICES:
        route = route_registry().catalog.route(service)
        broker.create_topics([route])
        build_relay(route, broker).run(stop, once=True)
        build_consumer(route, broker).run(stop, is_drained=lambda: True)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_rows_of_plain_sql_are_worked_off_and_finished_ones_stay(
    alias: str, broker: MemoryBroker, stop: StopFlag
) -> None:
    past = database_now(alias) - timedelta(hours=1)
    for task_id in (7001, 7003):
        Task.objects.using(alias).create(pk=task_id, user_id=42, urgency_threshold_at=past)
    load_as_go(alias)
    sent = AgentOutboxMessage.objects.using(alias).get(payload__contains='"go-sent"')
    go_event = {
        "service": "agent",
        "topic": sent.topic,
        "message_key": sent.message_key,
        "payload": json.loads(sent.payload),
    }

    assert SERVICES.index("agent") < SERVICES.index("memory")
    assert SERVICES.index("active-scheduler") < SERVICES.index("notification")
    work_off(broker, stop)
    agent = build_consumer(route_registry().catalog.route("agent"), broker)
    agent.handle([go_record(go_event, sent.pk)])
    agent.handle([go_record(go_event, sent.pk)])

    for service, model in service_models().items():
        open_rows = model.objects.using(alias).exclude(status="consumed")
        expected = ["handler: Error 1213 (40001): Deadlock found"] if service == "agent" else []
        assert list(open_rows.values_list("last_error", flat=True)) == expected, service
    agent_rows = AgentOutboxMessage.objects.using(alias).order_by("pk")
    bare = agent_rows.get(message_key="conv-old")
    assert dict(agent_rows.filter(retry_count__gt=0).values_list("message_key", "retry_count")) == {
        "conv-retried": 3,
        "conv-dead": 20,
    }

    assert records.rows(ChatHistory, alias, "event_id", "message", "user_id") == [
        ("go-said", "I'd rather not meet before ten 😅", 42),
        ("go-answered", "Done.", 42),
        (str(bare.pk), "without an envelope", 43),
        ("go-retried", "at the fourth attempt", 43),
        ("go-sent", "sent by the Go relay", 43),
    ]
    chats = records.rows(AgentChat, alias, "conversation_id", "message_count", "tokens_total")
    assert sorted(chats) == [
        ("conv-1001", 2, 21 + 118 + 57),
        ("conv-old", 1, 5),
        ("conv-retried", 1, 6),
        ("conv-sent", 1, 7),
    ]
    snapshot = AgentStateSnapshotRecord.objects.using(alias).get()
    assert (snapshot.conversation_id, snapshot.phase) == ("conv-1001", "planning")
    assert json.loads(snapshot.snapshot_json)["note"] == "你好 <&>"
    assert records.rows(TokenLedgerEntry, alias, "event_id", "tokens_delta") == [("go-tokens", 57)]
    assert records.rows(AgentTimelineEvent, alias, "chat_id", "seq", "payload_json") == [
        ("conv-1001", 1, '{"tool":"query_tasks"}')
    ]
    jobs = records.rows(MemoryJob, alias, "conversation_id", "source_text", order_by=["conversation_id"])
    assert jobs == [("conv-1001", "I'd rather not meet before ten 😅"), ("conv-2002", "Fridays are for reading.")]
    assert records.rows(Task, alias, "pk", "priority") == [(7001, 1), (7003, 2)]
    trigger = ActiveScheduleTrigger.objects.using(alias).get()
    preview = ActiveSchedulePreview.objects.using(alias).get()
    assert (trigger.trigger_id, trigger.status, trigger.preview_id) == (
        "ast_5f0e7f1f",
        "preview_generated",
        preview.preview_id,
    )
    told = records.rows(NotificationRecord, alias, "preview_id", "status", order_by=["requested_at"])
    assert told == [("asp_11aa22bb", "pending"), (preview.preview_id, "pending")]
    assert NotificationOutboxMessage.objects.using(alias).count() == 2
