"""The old entry points are a thin shell: they warn, and go through the same registries as everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from django.db import transaction

from agent_events.memory.models import MemoryOutboxMessage
from agent_events.task.models import TaskOutboxMessage
from outbox import Delivery, publish
from outbox.brokers.memory import MemoryBroker
from outbox.contrib.shared_table import compat
from outbox.coordination.shutdown import StopFlag
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import Handler, handlers
from outbox.exceptions import ConfigurationError, InvalidEventError, UnknownEventTypeError
from outbox.registry.catalog import route_registry, service_models
from outbox.workers.build import build_consumer, build_relay
from tests import records

URGENCY = "task.urgency.promote.requested"
EXTRACT = "memory.extract.requested"
PAYLOAD: dict[str, Any] = {"user_id": 42, "task_ids": [7001], "triggered_at": "2026-05-01T09:30:00+08:00"}
EXTRACT_PAYLOAD: dict[str, Any] = {
    "user_id": 42,
    "conversation_id": "conv-1",
    "source_role": "user",
    "source_text": "我喜欢早上工作",
    "occurred_at": "2026-05-01T09:30:00Z",
    "idempotency_key": "k-1",
}


@pytest.fixture
def alias(alias: str) -> Iterator[str]:
    yield alias
    records.empty(alias)


@pytest.fixture
def unhandled() -> Iterator[None]:
    """Take the handler of the urgency event away for the time of the test."""
    known = handlers.get(URGENCY)
    assert known is not None
    handlers.remove(URGENCY)
    yield
    handlers.remove(URGENCY)
    handlers.add(URGENCY, known.function, batch=known.batch)


def enqueue(event_type: str, message_key: str, payload: Any) -> str:
    with pytest.warns(DeprecationWarning, match=r"enqueue\(\) is deprecated; use outbox\.publish\(\)") as warned:
        event_id = compat.enqueue(event_type, message_key, payload)
    assert warned[0].filename == __file__, "the warning does not point at the caller"
    return event_id


def register_handler(event_type: str, handler: Any) -> None:
    with pytest.warns(DeprecationWarning, match=r"register_handler\(\) is deprecated; use @outbox\.handles") as warned:
        compat.register_handler(event_type, handler)
    assert warned[0].filename == __file__, "the warning does not point at the caller"


def work_off(service: str, broker: MemoryBroker, stop: StopFlag) -> None:
    route = route_registry().catalog.route(service)
    broker.create_topics([route])
    build_relay(route, broker).run(stop, once=True)
    build_consumer(route, broker).run(stop, is_drained=lambda: True)


def no_rows(alias: str) -> bool:
    return not any(model.objects.using(alias).exists() for model in service_models().values())


# --- enqueue -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [PAYLOAD, json.dumps(PAYLOAD), json.dumps(PAYLOAD).encode()],
    ids=["mapping", "text", "bytes"],
)
def test_enqueue_writes_the_row_that_publish_writes(alias: str, payload: Any) -> None:
    contract = contracts.get(URGENCY)
    event_ids = [
        enqueue(URGENCY, "42", payload),
        publish(contract.decode(json.dumps(PAYLOAD).encode(), version=contract.version)),
    ]
    rows = [content_of(row) for row in TaskOutboxMessage.objects.using(alias).order_by("pk")]
    assert [row.pop("event_id") for row in rows] == event_ids
    assert rows[0] == rows[1]
    assert rows[0]["message_key"] == "42"


def content_of(row: TaskOutboxMessage) -> dict[str, Any]:
    """Return what a row says, without what every row has of its own."""
    names = ("event_type", "service_name", "topic", "message_key", "status", "max_retry", "retry_count")
    stored: dict[str, Any] = json.loads(row.payload)
    return {name: getattr(row, name) for name in names} | stored


def test_enqueue_finds_the_table_of_the_owner(alias: str) -> None:
    enqueue(EXTRACT, "conv-1", EXTRACT_PAYLOAD)
    row = MemoryOutboxMessage.objects.using(alias).get()
    assert (row.service_name, row.message_key) == ("memory", "conv-1")
    assert json.loads(row.payload)["payload"] == EXTRACT_PAYLOAD


def test_enqueue_is_part_of_the_callers_transaction(alias: str) -> None:
    with transaction.atomic(using=alias):
        enqueue(URGENCY, "42", PAYLOAD)
        transaction.set_rollback(True, using=alias)
    assert no_rows(alias)


@pytest.mark.parametrize("event_type", ["nobody.knows.this", ""])
def test_unknown_type_is_refused_and_goes_into_no_table(alias: str, event_type: str) -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(UnknownEventTypeError, match=repr(event_type)),
    ):
        compat.enqueue(event_type, "42", PAYLOAD)
    assert no_rows(alias)


@pytest.mark.parametrize("message_key", ["43", "", "042", " 42"])
def test_key_that_is_not_the_contracts_is_refused(alias: str, message_key: str) -> None:
    """Under another key, the event would not be in order with the others of its user."""
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(InvalidEventError, match="the contract's key is '42'") as refused,
    ):
        compat.enqueue(URGENCY, message_key, PAYLOAD)
    assert refused.value.field == "message_key"
    assert no_rows(alias)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({**PAYLOAD, "user_id": 0}, "user_id"),
        ({**PAYLOAD, "task_ids": [1, 1]}, "task_ids"),
        ({"user_id": 42}, "task_ids"),
        ("{", "truncated"),
        (b"\xff", "payload"),
        ("[]", "object"),
        ("", "payload"),
        ({**PAYLOAD, "triggered_at": object()}, "payload"),
        ({**PAYLOAD, "triggered_at": "\ud800"}, "payload"),
        ('{"user_id": "\ud800"}', "payload"),
    ],
    ids=[
        "value",
        "rule",
        "missing",
        "cut",
        "not-utf-8",
        "list",
        "empty",
        "not-json",
        "half-a-character",
        "half-in-text",
    ],
)
def test_payload_that_breaks_the_contract_is_refused(alias: str, payload: Any, said: str) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(InvalidEventError, match=said):
        compat.enqueue(URGENCY, "42", payload)
    assert no_rows(alias)


# --- register_handler --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhandled")
def test_registered_handler_gets_what_is_enqueued(alias: str, broker: MemoryBroker, stop: StopFlag) -> None:
    got: list[Delivery[Any]] = []
    register_handler(URGENCY, got.append)
    event_id = enqueue(URGENCY, "42", PAYLOAD)
    work_off("task", broker, stop)
    (delivery,) = got
    assert (delivery.event_id, delivery.message_key, delivery.attempt) == (event_id, "42", 1)
    assert msgspec.to_builtins(delivery.payload)["task_ids"] == [7001]
    assert TaskOutboxMessage.objects.using(alias).get().status == "consumed"


@pytest.mark.usefixtures("unhandled")
def test_registered_handler_runs_in_the_consumers_transaction(alias: str, broker: MemoryBroker, stop: StopFlag) -> None:
    """What it enqueues goes with its own event: both, or neither."""

    def fail_after_writing(_delivery: Delivery[Any]) -> None:
        compat.enqueue(EXTRACT, "conv-1", EXTRACT_PAYLOAD)
        raise RuntimeError("no")

    register_handler(URGENCY, fail_after_writing)
    enqueue(URGENCY, "42", PAYLOAD)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        work_off("task", broker, stop)
    row = TaskOutboxMessage.objects.using(alias).get()
    assert (row.status, row.retry_count, row.last_error) == ("pending", 1, "RuntimeError: no")
    assert not MemoryOutboxMessage.objects.using(alias).exists()


@pytest.mark.usefixtures("unhandled")
def test_handlers_share_one_registry() -> None:
    def handle(_delivery: Delivery[Any]) -> None: ...

    def handle_otherwise(_delivery: Delivery[Any]) -> None: ...

    register_handler(URGENCY, handle)
    register_handler(URGENCY, handle)
    assert handlers.get(URGENCY) == Handler(handle, batch=False)
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(ConfigurationError, match="two handlers"):
        compat.register_handler(URGENCY, handle_otherwise)
    assert handlers.get(URGENCY) == Handler(handle, batch=False)


def test_handler_of_a_service_is_not_replaced() -> None:
    known = handlers.get(URGENCY)
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(ConfigurationError, match="two handlers"):
        compat.register_handler(URGENCY, lambda _delivery: None)
    assert handlers.get(URGENCY) == known


def test_handler_of_an_unknown_type_is_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(UnknownEventTypeError, match=r"nobody\.knows\.this"),
    ):
        compat.register_handler("nobody.knows.this", lambda _delivery: None)
    assert "nobody.knows.this" not in handlers
