"""A service whose topic other software reads sends every payload inside its record, or refuses it when published."""

from __future__ import annotations

import json

import pytest

from agent_events.agent.models import AgentOutboxMessage
from outbox import publish
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.shutdown import StopFlag
from outbox.exceptions import PayloadTooLargeError
from outbox.registry.catalog import route_registry
from outbox.wire.envelope import REFERENCE_HEADER
from outbox.workers.build import build_consumer, build_relay
from tests import factories
from tests.conftest import Configure
from tests.publishing import outbox_rows, snapshot
from tests.relays import TOPIC, MakeRelay, step_until_idle

LARGEST = 100_000


@pytest.fixture
def whole(alias: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the agent service say that its payloads travel whole, with settings that would leave them in their rows."""
    monkeypatch.setattr(AgentOutboxMessage, "whole_payload_bytes", LARGEST)
    configure(REFERENCE_BYTES=1_000)
    yield alias
    monkeypatch.undo()
    configure()


def test_large_payload_travels_inside_its_record(
    whole: str, broker: MemoryBroker, stop: StopFlag, make_relay: MakeRelay
) -> None:
    publish(snapshot(snapshot_json="会" * 20_000))
    [row] = outbox_rows(whole)
    route = route_registry().catalog.route("agent")
    broker.create_topics([route])

    build_relay(route, broker).run(stop, once=True)

    [record] = broker.records(TOPIC)
    assert json.loads(record.value)["payload"] == json.loads(row.payload)["payload"]
    assert REFERENCE_HEADER not in dict(record.headers)
    build_consumer(route, broker).run(stop, max_events=1)
    assert factories.statuses(whole) == {row.pk: "consumed"}


def test_row_of_other_software_that_is_larger_travels_whole_too(
    whole: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    """Its writer knows no limit, and its reader no record without a payload: the broker may refuse it, and says so."""
    payload = {"key": "k", "number": 1, "filler": "x" * (3 * LARGEST)}
    row_id = factories.row(whole, payload=payload)

    step_until_idle(make_relay(reference_bytes=1_000, batch_bytes=LARGEST))

    [record] = broker.records(TOPIC)
    assert json.loads(record.value)["payload"] == payload
    assert factories.statuses(whole) == {row_id: "published"}


def test_payload_that_no_record_takes_is_refused_when_it_is_published(whole: str) -> None:
    with pytest.raises(PayloadTooLargeError, match=r"100,000.*whole_payload_bytes of the outbox model of 'agent'"):
        publish(snapshot(snapshot_json="x" * LARGEST))

    assert outbox_rows(whole) == []
