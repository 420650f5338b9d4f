"""The relay on every database: nothing is lost, nothing is skipped, and one bad event stops nobody else."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from outbox import signals
from outbox.brokers.base import OutgoingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.lifecycle import Status
from outbox.models import ServiceSwitch
from outbox.storage.installations import installation_id
from outbox.wire.envelope import INSTALLATION_HEADER, REFERENCE_HEADER, decode_message
from tests import factories
from tests.factories import get, row, rows, status_counts, statuses
from tests.relays import TOPIC, MakeRelay, sent_ids, step_until_idle
from tests.repositories import new_row, note_large_texts
from tests.toys import NOTE, PARKED, ManualClock, RecordingStop, Toys, effect_ids

HOUR = timedelta(hours=1)


# --- the main way ------------------------------------------------------------------------------------------------


def test_what_is_due_is_sent_and_marked(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    ids = rows(alias, 5, key=lambda number: f"key-{number}")
    later = row(alias, due_in=HOUR)

    step_until_idle(make_relay())

    assert sorted(sent_ids(broker)) == ids
    assert status_counts(alias) == {"published": 5, "pending": 1}
    assert get(alias, later).status == Status.PENDING


def test_record_says_what_the_row_says(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    row_id = row(alias, key="conversation-1", number=7, traceparent="00-aa-bb-01")

    step_until_idle(make_relay())

    [record] = broker.records(TOPIC)
    assert record.key == b"conversation-1"
    assert json.loads(record.value) == {
        "outbox_id": row_id,
        "event_id": "e-1",
        "event_type": NOTE,
        "event_version": "v2",
        "service_name": "agent",
        "aggregate_id": "conversation-1",
        "payload": {"key": "conversation-1", "number": 7},
    }
    headers = dict(record.headers)
    assert (headers["event_type"], headers["traceparent"]) == (NOTE.encode(), b"00-aa-bb-01")
    assert headers[INSTALLATION_HEADER] == installation_id(alias).encode()
    assert REFERENCE_HEADER not in headers


def test_time_of_a_record_is_the_databases(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker refuses what comes from the future: a relay whose machine has a wrong clock must not stand still."""
    row(alias)
    sent: list[OutgoingRecord] = []
    monkeypatch.setattr(
        type(broker),
        "reason_to_refuse",
        lambda _self, record: sent.append(record) or "noted",  # type: ignore[func-returns-value]
    )

    step_until_idle(make_relay())

    [record] = sent
    assert record.sent_at is not None
    assert abs(record.sent_at - factories.database_now(alias)) < timedelta(minutes=1)


def test_records_of_a_key_are_sent_in_the_order_of_their_ids(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    ids = rows(alias, 60, key=lambda number: f"key-{number % 4}")

    step_until_idle(make_relay(batch_size=7, in_flight_batches=3))

    for key in range(4):
        of_key = [each for each in sent_ids(broker) if get(alias, each).message_key == f"key-{key}"]
        assert of_key == ids[key::4]


def test_every_row_is_sent_once_when_nothing_goes_wrong(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    factories.repository().insert([new_row(number) for number in range(50)])

    step_until_idle(make_relay(batch_size=7, in_flight_batches=3))

    assert sorted(sent_ids(broker)) == list(statuses(alias))


def test_large_payload_travels_by_reference(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    large = row(alias, payload={"key": "k", "number": 5, "filler": "会" * 400})

    step_until_idle(make_relay(reference_bytes=1000))

    [record] = broker.records(TOPIC)
    message = decode_message(record.value)
    assert (message.outbox_id, bytes(message.payload)) == (large, b"null")
    assert dict(record.headers)[REFERENCE_HEADER] == b"true"
    assert len(record.value) < 1000
    factories.consumer(alias, toys, broker=broker).step(10)
    assert effect_ids(alias) == [large]


def test_claims_are_cut_by_their_payloads_and_go_on(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make_relay(batch_bytes=5_000, reference_bytes=100_000, sweep_interval_seconds=3600)
    ids = [row(alias, key=str(n % 3), payload={"key": "k", "number": n, "text": "x" * 2_000}) for n in range(20)]
    statements = note_large_texts(monkeypatch, 2_000)

    relay.run(stop, once=True)

    assert sorted(sent_ids(broker)) == ids
    assert set(statuses(alias).values()) == {"published"}
    assert (sum(statements), max(statements)) == (20, 2)


def test_late_commit_is_found_by_the_sweep(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    """A transaction that took its time commits rows that lie behind the relay's mark."""
    relay = make_relay(batch_size=2, sweep_interval_seconds=1.0)
    rows(alias, 6)
    relay.step()
    late = row(alias, due_in=-HOUR)

    relay.step()
    assert late not in sent_ids(broker), "the relay goes on behind its mark"
    clock.advance(1.1)
    relay.step()
    assert late in sent_ids(broker)


def test_late_commit_is_found_when_nothing_else_is_due(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    relay = make_relay(batch_size=2)
    rows(alias, 4)
    step_until_idle(relay)
    late = row(alias, due_in=-HOUR)

    step_until_idle(relay)

    assert sent_ids(broker)[-1] == late


def test_foreign_rows_stay_where_they_are(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    own, foreign = row(alias), row(alias, event_type="memory.extract.requested")

    step_until_idle(make_relay(foreign_types=("memory.extract.requested",)))

    assert sent_ids(broker) == [own]
    assert get(alias, foreign).status == Status.PENDING


def test_row_of_other_software_is_sent(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload)"
            " VALUES (%s, %s, %s, %s, %s)",
            [NOTE, "agent", "some.other.topic", "k", '{"payload": {"key": "k", "number": 1}}'],
        )

    step_until_idle(make_relay())

    [record] = broker.records(TOPIC)
    message = decode_message(record.value)
    assert (message.event_id, message.event_version) == (str(message.outbox_id), "v1")


def test_paused_relay_sends_nothing_until_it_is_let_go_on(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    relay = make_relay()
    switch = ServiceSwitch.objects.using(alias).create(service="agent", relay_paused=True)
    ids = rows(alias, 2)

    step_until_idle(relay)
    assert broker.records(TOPIC) == []
    switch.relay_paused = False
    switch.save(using=alias)
    clock.advance(10)
    step_until_idle(relay)

    assert sent_ids(broker) == ids


def test_once_ends_when_nothing_is_due(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop
) -> None:
    ids = rows(alias, 10)
    later = row(alias, due_in=HOUR)

    totals = make_relay(batch_size=3).run(stop, once=True)

    assert totals.published == 10
    assert sent_ids(broker) == ids
    assert get(alias, later).status == Status.PENDING


# --- one bad event stops nobody else -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ("no json", "not an envelope"),
        ("", "not an envelope"),
        ('{"event_id": "e"}', "payload"),
        ('{"event_type": "toy.other", "payload": {}}', "says event_type 'toy.other'"),
        ('{"payload": ' + "[" * 50_000 + "]" * 50_000 + "}", "recursion"),
    ],
    ids=["text", "empty", "half", "other type", "deep"],
)
@pytest.mark.parametrize("reference_bytes", [1, 10**9])
def test_undecodable_row_dies_with_its_reason_and_the_rest_is_sent(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stored: str, reason: str, reference_bytes: int
) -> None:
    before, bad, after = row(alias), row(alias, stored=stored), row(alias)
    relay = make_relay(reference_bytes=reference_bytes)

    step_until_idle(relay)

    found = get(alias, bad)
    assert (found.status, found.error_class, found.retry_count) == ("dead", "EnvelopeError", 0)
    assert reason in found.last_error
    assert sent_ids(broker) == [before, after]
    assert (relay.totals.published, relay.totals.dead) == (2, 1)


def test_batch_of_nothing_but_undecodable_rows_dies(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    rows(alias, 5, stored="no json")

    step_until_idle(make_relay(batch_size=2))

    assert status_counts(alias) == {"dead": 5}
    assert broker.records(TOPIC) == []


def test_refused_record_dies_and_its_successor_is_not_lost(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    first, refused, successor = rows(alias, 3)
    broker.refuse(lambda record: "too large" if record.outbox_id == refused else None)
    heard: list[tuple[int, str]] = []

    def on_refused(sender: str, outbox_id: int, reason: str, **_: Any) -> None:
        heard.append((outbox_id, reason))

    signals.refused.connect(on_refused)
    try:
        step_until_idle(make_relay())
    finally:
        signals.refused.disconnect(on_refused)

    assert statuses(alias) == {first: "published", refused: "dead", successor: "published"}
    assert get(alias, refused).last_error == "the broker refused the record: too large"
    assert heard == [(refused, "the broker refused the record: too large")]
    factories.consumer(alias, toys, broker=broker).step(10)
    assert effect_ids(alias) == [first, successor]


@pytest.mark.parametrize(("event_type", "parks"), [(NOTE, False), (PARKED, True), ("toy.nobody", False)])
def test_death_in_the_relay_parks_the_key_where_the_event_type_asks_for_it(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, event_type: str, parks: bool
) -> None:
    unreadable = row(alias, stored="no json", event_type=event_type)
    refused = row(alias, event_type=event_type)
    broker.refuse(lambda record: "no")

    step_until_idle(make_relay())

    assert [get(alias, each).parks_key for each in (unreadable, refused)] == [parks, parks]


# --- a gate on statements ----------------------------------------------------------------------------------------


def verbs(captured: CaptureQueriesContext) -> list[str]:
    return [query["sql"].split(None, 1)[0] for query in captured]


@pytest.mark.parametrize("size", [1, 10, 100])
def test_statements_of_a_step_do_not_depend_on_the_batch_size(alias: str, make_relay: MakeRelay, size: int) -> None:
    relay = make_relay(batch_size=100)
    relay.step()
    rows(alias, size, key=lambda number: f"key-{number}")

    with CaptureQueriesContext(connections[alias]) as captured:
        assert relay.step()
        connections[alias].ensure_connection()
    claim, mark = ["SELECT"], ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
    if size < 100:
        assert verbs(captured) == claim + mark, "the batch is not full, so it is settled at once"
    else:
        assert verbs(captured) == claim, "the mark follows when the broker's answers are due"
        with CaptureQueriesContext(connections[alias]) as captured:
            relay.step()
        assert verbs(captured) == claim + mark, "nothing behind the last row, so mark"
    assert status_counts(alias) == {"published": size}


def test_idle_step_is_one_statement(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay()
    step_until_idle(relay)

    with CaptureQueriesContext(connections[alias]) as captured:
        assert not relay.step()

    assert len(captured) == 1, captured.captured_queries


def test_statements_of_a_heartbeat_do_not_depend_on_the_shards_held(alias: str, clock: ManualClock) -> None:
    worker = factories.leases(alias, clock)
    worker.refresh()

    with CaptureQueriesContext(connections[alias]) as captured:
        worker.refresh()

    # seen, switches, renew, who is alive
    assert len(captured) == 4, captured.captured_queries
