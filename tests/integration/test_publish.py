"""Publishing: in the caller's transaction, refused there and then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from django.db import connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import event, publish, publish_many
from outbox.declarations.contracts import contracts
from outbox.exceptions import (
    ConfigurationError,
    EnvelopeError,
    InvalidEventError,
    PayloadTooLargeError,
    UnknownEventTypeError,
    UnknownServiceError,
    WrongDatabaseError,
)
from outbox.lifecycle import Status
from outbox.publishing import StoredEvent, stored_event, traceparent
from outbox.wire.envelope import decode_envelope
from tests import records
from tests.conftest import Configure
from tests.publishing import business_is_there, outbox_rows, remember_business, rolled_back, snapshot
from tests.toys import NOTE, PARKED, Toys

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def current_trace() -> str:
    """Stand for the project's own tracing; settings name it by its path."""
    return TRACEPARENT


@pytest.fixture
def known(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    """Let the toy events be published, by a registry of their own."""
    from outbox.registry.catalog import forget_routes

    monkeypatch.setattr("outbox.publishing.contracts", toys.contracts)
    yield toys
    forget_routes()


# --- in the caller's transaction -------------------------------------------------------------------------------------


def test_event_becomes_a_row_of_its_owner(alias: str) -> None:
    event_id = publish(snapshot())

    [row] = outbox_rows(alias)
    assert (row.event_type, row.service_name, row.topic) == (
        "agent.state.snapshot.persist",
        "agent",
        "smartflow.agent.outbox",
    )
    assert (row.message_key, row.status, row.retry_count, row.max_retry) == ("c-1", Status.PENDING, 0, 20)
    assert json.loads(row.payload) == {
        "event_id": event_id,
        "event_type": "agent.state.snapshot.persist",
        "event_version": "v1",
        "aggregate_id": "c-1",
        "payload": {"conversation_id": "c-1", "user_id": 7, "phase": "plan", "snapshot_json": '{"a": 1}'},
    }
    assert row.next_retry_at is not None


def test_rolled_back_transaction_emits_nothing(alias: str) -> None:
    with rolled_back(alias):
        remember_business(alias)
        publish(snapshot())
        publish_many([snapshot("c-2"), snapshot("c-3")])
        assert len(outbox_rows(alias)) == 3

    assert outbox_rows(alias) == []
    assert not business_is_there(alias)


def test_committed_transaction_emits_with_its_business_write(alias: str) -> None:
    with transaction.atomic(using=alias):
        remember_business(alias)
        publish(snapshot(), using=alias)
        assert business_is_there(alias)

    assert len(outbox_rows(alias)) == 1


def test_without_a_transaction_it_commits_by_itself(alias: str) -> None:
    publish(snapshot())
    connections[alias].close()

    assert len(outbox_rows(alias)) == 1


def test_rolled_back_savepoint_takes_its_event_along(alias: str) -> None:
    with transaction.atomic(using=alias):
        publish(snapshot("kept"))
        with rolled_back(alias):
            publish(snapshot("gone"))

    assert [row.message_key for row in outbox_rows(alias)] == ["kept"]


# --- many --------------------------------------------------------------------------------------------------------


def test_many_keep_their_order_and_return_their_ids(alias: str) -> None:
    event_ids = publish_many(snapshot(f"c-{number}") for number in range(30))

    rows = outbox_rows(alias)
    assert [row.message_key for row in rows] == [f"c-{number}" for number in range(30)]
    assert [json.loads(row.payload)["event_id"] for row in rows] == event_ids
    assert len(set(event_ids)) == 30


@pytest.mark.parametrize(("count", "statements"), [(0, 0), (1, 1), (400, 1), (501, 2)])
def test_publishing_takes_one_statement_for_some_hundred_events(
    alias: str, django_assert_num_queries: Any, count: int, statements: int
) -> None:
    events = [snapshot(f"c-{number}") for number in range(count)]
    with django_assert_num_queries(statements, connection=connections[alias]):
        publish_many(events)


def test_many_take_one_statement_a_service(alias: str, known: Toys, django_assert_num_queries: Any) -> None:
    from agent_events.task.models import TaskOutboxMessage

    note, other = known.types[NOTE], msgspec.defstruct("Task", [("key", str), ("number", int)])
    event("toy.of.task", service="task", key="key", registry=known.contracts)(other)

    with django_assert_num_queries(2, connection=connections[alias]):
        publish_many([kind(key="k", number=number) for number in range(10) for kind in (note, other)])

    assert len(outbox_rows(alias)) == 10
    tasks = list(TaskOutboxMessage.objects.using(alias).order_by("id"))
    assert [json.loads(row.payload)["payload"]["number"] for row in tasks] == list(range(10))
    assert {(row.service_name, row.topic) for row in tasks} == {("task", "smartflow.task.outbox")}


def test_one_bad_event_of_many_refuses_all(alias: str) -> None:
    with pytest.raises(InvalidEventError):
        publish_many([snapshot("c-1"), snapshot("c-2", user_id=0)])

    assert outbox_rows(alias) == []


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"user_id": 0}, "user_id", ">= 1"),
        ({"user_id": "7"}, "user_id", "Expected `int`, got `str`"),
        ({"phase": "x" * 33}, "phase", "<= 32"),
        ({"conversation_id": ""}, "conversation_id", ">= 1"),
        ({"conversation_id": "x" * 129}, "conversation_id", "<= 128"),
        ({"snapshot_json": None}, "snapshot_json", "Expected `str`, got `null`"),
        ({"snapshot_json": "\ud800"}, "payload", "surrogates"),
    ],
)
def test_invalid_event_is_refused_with_field_and_reason(
    alias: str, fields: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidEventError) as caught:
        publish(snapshot(**fields))

    assert caught.value.field == field
    assert reason in caught.value.reason
    assert outbox_rows(alias) == []


def test_payload_may_be_as_large_as_the_limit_and_no_larger(alias: str, configure: Configure) -> None:
    publish(snapshot(snapshot_json=""))
    overhead = len(outbox_rows(alias)[0].payload)
    configure(MAX_PAYLOAD_BYTES=10_000)

    publish(snapshot(snapshot_json="x" * (10_000 - overhead)))
    with pytest.raises(PayloadTooLargeError, match=r"10,001 bytes are more than the limit of 10,000"):
        publish(snapshot(snapshot_json="x" * (10_001 - overhead)))

    assert len(outbox_rows(alias)) == 2


def test_limit_counts_bytes(alias: str, configure: Configure) -> None:
    configure(MAX_PAYLOAD_BYTES=2_000)

    with pytest.raises(PayloadTooLargeError):
        publish(snapshot(snapshot_json="会" * 700))


@pytest.mark.parametrize("text", ["会话 🙂 \u2028", "an escaped \\u0000", "'; DROP TABLE x; --", "%s %(a)s {}"])
def test_payload_comes_back_as_it_was_given(alias: str, text: str) -> None:
    publish(snapshot(snapshot_json=text))

    [row] = outbox_rows(alias)
    found = decode_envelope(row.payload, outbox_id=row.pk, event_type=row.event_type)
    assert contracts.get(row.event_type).decode(found.payload, version="v1").snapshot_json == text


def test_payload_of_megabytes_is_written_and_read(alias: str) -> None:
    publish(snapshot(snapshot_json="x" * 6_000_000))

    [row] = outbox_rows(alias)
    assert len(row.payload) > 6_000_000


# --- routing -----------------------------------------------------------------------------------------------------


class Undeclared(msgspec.Struct):
    """An event that nobody registered."""


def test_unknown_event_type_is_an_error_and_never_a_row(alias: str) -> None:
    with pytest.raises(UnknownEventTypeError, match="Undeclared"):
        publish(Undeclared())

    assert outbox_rows(alias) == []


def test_event_of_a_service_that_nobody_declares_is_an_error(alias: str, known: Toys) -> None:
    homeless = event("toy.homeless", service="nobody", key="key", registry=known.contracts)(
        msgspec.defstruct("Homeless", [("key", str)])
    )

    with pytest.raises(UnknownServiceError, match="'nobody' is unknown"):
        publish(homeless(key="k"))


def test_event_type_that_its_column_cannot_hold_is_refused(alias: str, known: Toys) -> None:
    long = event("x" * 65, service="agent", key="key", registry=known.contracts)(
        msgspec.defstruct("Long", [("key", str)])
    )

    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        publish(long(key="k"))
    assert outbox_rows(alias) == []


def test_aggregate_id_that_no_database_holds_is_refused(alias: str, known: Toys) -> None:
    odd = event("toy.odd", service="agent", key="key", aggregate_id=lambda _: "a\x00b", registry=known.contracts)(
        msgspec.defstruct("Odd", [("key", str)])
    )

    with pytest.raises(InvalidEventError, match="'aggregate_id': it holds a NUL"):
        publish(odd(key="k"))


def test_event_without_an_aggregate_has_an_empty_one(alias: str, known: Toys) -> None:
    loose = event("toy.loose", service="agent", key="key", aggregate_id="other", registry=known.contracts)(
        msgspec.defstruct("Loose", [("key", str), ("other", str | None, None)])
    )

    publish(loose(key="k"))

    assert json.loads(outbox_rows(alias)[0].payload)["aggregate_id"] == ""


def test_contract_that_is_declared_late_is_routed(alias: str, known: Toys) -> None:
    publish(known.types[NOTE](key="k", number=1))
    publish(known.types[PARKED](key="k", number=2))

    assert [row.event_type for row in outbox_rows(alias)] == [NOTE, PARKED]


def test_names_follow_configuration(alias: str, configure: Configure) -> None:
    configure(
        services={"agent": {"DATABASE": alias, "TABLE": "task_outbox_messages", "TOPIC": "my.topic"}},
        EVENTS={"agent.state.snapshot.persist": {"MAX_ATTEMPTS": 3}},
    )
    from agent_events.task.models import TaskOutboxMessage

    publish(snapshot())

    assert outbox_rows(alias) == []
    row = TaskOutboxMessage.objects.using(alias).get()
    assert (row.service_name, row.topic, row.max_retry) == ("agent", "my.topic", 3)


# --- one database ------------------------------------------------------------------------------------------------


def other_than(alias: str) -> str:
    return "mariadb" if alias == "default" else "default"


def test_stating_another_database_is_refused(alias: str) -> None:
    with pytest.raises(WrongDatabaseError, match=f"keeps its outbox in database alias '{alias}'") as caught:
        publish(snapshot(), using=other_than(alias))

    assert (caught.value.expected, caught.value.actual) == (alias, other_than(alias))
    assert outbox_rows(alias) == []


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_transaction_on_another_database_is_refused(alias: str) -> None:
    with (
        transaction.atomic(using="default"),
        pytest.raises(WrongDatabaseError, match=rf"transaction\.atomic\(using='{alias}'\)"),
    ):
        publish(snapshot())

    assert outbox_rows(alias) == []


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_transactions_on_both_databases_are_the_callers_choice(alias: str) -> None:
    with transaction.atomic(using="default"), transaction.atomic(using=alias):
        publish(snapshot())

    assert len(outbox_rows(alias)) == 1


# --- reading back ------------------------------------------------------------------------------------------------


def test_event_is_read_back_as_far_as_it_can_be(alias: str) -> None:
    event_id = publish(snapshot())
    [row] = outbox_rows(alias)
    read = {"outbox_id": row.pk, "event_type": row.event_type}
    assert stored_event("agent", **read) == StoredEvent(event_id, "c-1", snapshot())

    records.spoil(AgentOutboxMessage, alias, written='"user_id":7', instead='"user_id":"seven"')
    assert stored_event("agent", **read) == StoredEvent(event_id, "c-1", None)

    with pytest.raises(EnvelopeError, match="says event_type"):
        stored_event("agent", outbox_id=row.pk, event_type="chat.history.persist.requested")
    with pytest.raises(EnvelopeError, match="row 4711 is not an envelope"):
        stored_event("agent", outbox_id=4711, event_type=row.event_type)


# --- tracing -----------------------------------------------------------------------------------------------------


def test_event_carries_the_trace_of_the_event_in_hand(alias: str) -> None:
    publish(snapshot())
    with traceparent(TRACEPARENT):
        publish(snapshot())

    assert [row.traceparent for row in outbox_rows(alias)] == ["", TRACEPARENT]


def test_event_carries_the_trace_of_the_request(alias: str, configure: Configure) -> None:
    configure(TRACEPARENT=f"{__name__}.current_trace")
    publish(snapshot())
    configure()
    publish(snapshot())

    assert [row.traceparent for row in outbox_rows(alias)] == [TRACEPARENT, ""]


def failing_trace() -> str:
    raise LookupError("the tracer is not there")


def long_trace() -> str:
    return "x" * 100


@pytest.mark.parametrize("source", ["failing_trace", "long_trace", "no_such_function"])
def test_source_of_traces_that_fails_keeps_no_event_back(
    alias: str, settings: Any, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    settings.OUTBOX = {**settings.OUTBOX, "TRACEPARENT": f"{__name__}.{source}"}

    with transaction.atomic(using=alias):
        publish(snapshot())
        publish_many([snapshot(), snapshot()])

    assert [row.traceparent for row in outbox_rows(alias)] == ["", "", ""]
    assert caplog.text.count("events are published without a trace") == 1
