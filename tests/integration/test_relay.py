"""The relay on every database: nothing is lost, nothing is skipped, and an outage is nobody's fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError, connections
from django.test.utils import CaptureQueriesContext

from outbox import embedded, signals
from outbox.brokers.base import OutgoingRecord, Positions, SendReport
from outbox.brokers.memory import MemoryBroker
from outbox.brokers.table import TableBroker
from outbox.consumer import Consumer
from outbox.envelope import REFERENCE_HEADER, decode_message
from outbox.exceptions import BrokerUnavailableError
from outbox.fields import SHARD_COUNT
from outbox.leases import CONSUMER, ShardLeases
from outbox.lifecycle import Status
from outbox.models import ServiceSwitch, ShardLease, Worker
from outbox.relay import Relay
from tests import factories
from tests.factories import database_now, get, make_due, row, rows, status_counts, statuses
from tests.toys import BULK, NOTE, PARKED, ManualClock, RecordingStop, Toys, effect_ids
from tests.transactions import drop_own_connection, kill_own_connection
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
TOPIC = "smartflow.agent.outbox"

MakeRelay = Callable[..., Relay]


@pytest.fixture
def make_relay(alias: str, broker: MemoryBroker, toys: Toys, clock: ManualClock) -> MakeRelay:
    def make(**options: Any) -> Relay:
        return factories.relay(alias, options.pop("broker", broker), toys, clock, **options)

    return make


def sent_ids(broker: MemoryBroker) -> list[int]:
    return [decode_message(record.value).outbox_id for record in broker.records(TOPIC)]


def step_until_idle(relay: Relay) -> int:
    """Let the relay work until there is nothing to do; return how many steps it took."""
    for steps in range(1, 1000):
        if not relay.step():
            return steps
    raise AssertionError("the relay never comes to rest")


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
    assert REFERENCE_HEADER not in headers


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
    factories.repository().insert([factories_new_row(number) for number in range(50)])

    step_until_idle(make_relay(batch_size=7, in_flight_batches=3))

    assert sorted(sent_ids(broker)) == list(statuses(alias))


def factories_new_row(number: int) -> Any:
    from outbox.envelope import encode_envelope
    from outbox.rows import NewRow

    return NewRow(NOTE, f"key-{number}", encode_envelope(factories.envelope()), max_retry=20)


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


# --- one bad event stops nobody else ---------------------------------------------------------------------------------


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


# --- outages -----------------------------------------------------------------------------------------------------


class _Flaky(MemoryBroker):
    """Goes away and comes back by a script: ``True`` fails one send, ``"late"`` takes the records and says nothing."""

    def __init__(self, *script: Any) -> None:
        super().__init__(partitions=3)
        self.script = list(script)

    def producer(self, *, client_id: str) -> Any:
        return _FlakyProducer(self, super().producer(client_id=client_id))


class _FlakyProducer:
    def __init__(self, broker: _Flaky, producer: Any) -> None:
        self._broker, self._producer = broker, producer

    def send(self, records: Sequence[OutgoingRecord]) -> Any:
        step = self._broker.script.pop(0) if self._broker.script else None
        if step is True:
            raise BrokerUnavailableError("away")
        if step == "late":
            self._producer.send(records)
            return _Answered(SendReport((), unanswered=tuple(each.outbox_id for each in records), outage="no answer"))
        if step == "half":
            self._producer.send(records[:1])
            ids = tuple(each.outbox_id for each in records)
            return _Answered(SendReport(ids[:1], unanswered=ids[1:], outage="no answer"))
        return self._producer.send(records)

    def close(self) -> None:
        self._producer.close()


class _Answered:
    def __init__(self, report: SendReport) -> None:
        self._report = report

    def report(self, timeout: timedelta) -> SendReport:
        return self._report


@pytest.mark.parametrize(
    ("script", "batch_size", "times_sent", "outages"),
    [
        ((True, True, True), 10, [1, 1, 1], 3),
        (("late",), 10, [2, 2, 2], 1),
        (("half",), 10, [1, 1, 1], 1),
        ((None, True), 1, [1, 1, 1], 1),
        ((None, "late", True), 1, [1, 2, 1], 2),
    ],
    ids=["away", "no answer", "half an answer", "later", "again and again"],
)
def test_outage_costs_no_attempt_and_work_goes_on_by_itself(
    alias: str,
    make_relay: MakeRelay,
    stop: RecordingStop,
    script: tuple[Any, ...],
    batch_size: int,
    times_sent: list[int],
    outages: int,
) -> None:
    ids = rows(alias, 3)
    broker = _Flaky(*script)

    totals = make_relay(broker=broker, batch_size=batch_size, in_flight_batches=1).run(stop, once=True)

    assert len(stop.pauses) == outages, "each is waited out"

    sent = sent_ids(broker)
    assert [sent.count(each) for each in ids] == times_sent
    assert status_counts(alias) == {"published": 3}
    assert {get(alias, each).retry_count for each in ids} == {0}
    assert totals.published == 3


def test_outage_is_said_and_its_end_too(
    alias: str, make_relay: MakeRelay, stop: RecordingStop, caplog: pytest.LogCaptureFixture
) -> None:
    rows(alias, 1)
    with caplog.at_level(logging.WARNING, "outbox"):
        make_relay(broker=_Flaky(True, True)).run(stop, once=True)

    texts = [record.getMessage() for record in caplog.records]
    assert any("the broker is away" in text and "no event loses an attempt" in text for text in texts)
    assert "relay of agent: the broker is back" in texts


def test_broker_that_is_away_at_the_start_is_waited_for(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop
) -> None:
    ids = rows(alias, 2)
    broker.go_away()
    outages: list[str] = []

    def come_back(sender: str, what: str, **_: Any) -> None:
        outages.append(what)
        if len(outages) == 2:
            broker.come_back()

    signals.outage.connect(come_back)
    try:
        make_relay().run(stop, once=True)
    finally:
        signals.outage.disconnect(come_back)

    assert sent_ids(broker) == ids
    assert outages == ["broker", "broker"]


def test_records_in_flight_at_the_outage_are_sent_again_and_have_one_effect(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 6)
    relay = make_relay(batch_size=2, in_flight_batches=3)
    relay.step()
    relay.step()
    broker.go_away()
    with pytest.raises(BrokerUnavailableError):
        step_until_idle(relay)
    broker.come_back()

    step_until_idle(make_relay_after(relay, make_relay))
    consumer = factories.consumer(alias, toys, broker=broker)
    consumer.step(100)
    make_due(alias)

    assert effect_ids(alias) == ids


def make_relay_after(crashed: Relay, make_relay: MakeRelay) -> Relay:
    """Return a new relay after another one ended without a word, its leases run out."""
    factories.expire(crashed._repository.route.database, crashed._leases.presence.worker_id)
    return make_relay()


@pytest.mark.parametrize("error", ["outage", "contention"])
def test_database_that_goes_away_is_waited_for(
    alias: str,
    broker: MemoryBroker,
    make_relay: MakeRelay,
    stop: RecordingStop,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
) -> None:
    ids = rows(alias, 3)
    relay = make_relay()
    real = type(relay._repository).mark_published
    vendor = connections[alias].vendor
    texts = {"outage": "disk I/O error", "contention": "database is locked"}
    codes = {"outage": (2013, "57P01"), "contention": (1213, "40P01")}[error]
    troubles = iter(range(2))

    def mark_published(*args: Any, **kwargs: Any) -> int:
        for _ in troubles:
            cause = type("Cause", (Exception,), {"sqlstate": codes[1]})()
            raise (OperationalError(texts[error]) if vendor == "sqlite" else OperationalError(codes[0], "x")) from cause
        return real(*args, **kwargs)

    monkeypatch.setattr(type(relay._repository), "mark_published", mark_published)
    held: list[frozenset[int]] = []

    def on_outage(sender: str, what: str, **_: Any) -> None:
        held.append(relay._leases.held)

    signals.outage.connect(on_outage)
    try:
        relay.run(stop, once=True)
    finally:
        signals.outage.disconnect(on_outage)

    assert held == [frozenset(), frozenset()], "leases may have run out meanwhile"
    assert status_counts(alias) == {"published": 3}
    assert sorted(set(sent_ids(broker))) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}


@pytest.mark.parametrize(
    ("database_alias", "breaks_it"),
    [("mariadb", kill_own_connection), ("postgres", kill_own_connection), ("postgres", drop_own_connection)],
    indirect=["database_alias"],
)
def test_connection_that_breaks_is_opened_again_and_nothing_is_lost(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop, breaks_it: Callable[[str], None]
) -> None:
    ids = rows(alias, 4, key=lambda number: f"key-{number}")
    relay = make_relay(batch_size=2, in_flight_batches=2)
    relay.step()
    breaks_it(alias)

    relay.run(stop, once=True)

    assert sorted(set(sent_ids(broker))) == ids
    assert status_counts(alias) == {"published": 4}
    assert stop.pauses


def test_statement_that_the_library_got_wrong_ends_the_process(
    make_relay: MakeRelay, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make_relay()

    def wrong(*_args: Any, **_kwargs: Any) -> Any:
        raise ProgrammingError(1054, "Unknown column")

    monkeypatch.setattr(type(relay._repository), "claim", wrong)
    with pytest.raises(ProgrammingError):
        relay.run(stop)


# --- redelivery --------------------------------------------------------------------------------------------------


def published_long_ago(alias: str, broker: MemoryBroker, make_relay: MakeRelay, count: int) -> list[int]:
    ids = rows(alias, count)
    step_until_idle(make_relay(worker_leases=None, redeliver_after_seconds=300))
    factories.let_get_stuck(alias, ids, by=timedelta(seconds=301))
    Worker.objects.using(alias).all().delete()
    ShardLease.objects.using(alias).all().delete()
    return ids


def read_everything(alias: str, broker: MemoryBroker, *, commit: bool = True) -> None:
    """Stand for a consumer that took the records and lost them, or a topic whose records were lost."""
    subscription = broker.subscribe(factories.repository().route, client_id="lossy")
    while records := subscription.receive(max_records=100, timeout=timedelta(0)):
        if commit:
            subscription.commit(records)
    subscription.close()


def test_what_is_stuck_comes_back_and_is_consumed(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys, clock: ManualClock
) -> None:
    ids = published_long_ago(alias, broker, make_relay, 3)
    read_everything(alias, broker)
    heard: list[int] = []

    def on_redelivered(sender: str, count: int, **_: Any) -> None:
        heard.append(count)

    signals.redelivered.connect(on_redelivered)
    relay = make_relay(redeliver_after_seconds=300)
    try:
        step_until_idle(relay)
    finally:
        signals.redelivered.disconnect(on_redelivered)

    assert sorted(sent_ids(broker)) == sorted([*ids, *ids])
    assert relay.totals.redelivered == 3
    assert heard == [3]
    factories.consumer(alias, toys, broker=broker).step(100)
    assert effect_ids(alias) == ids


def test_more_than_a_batch_of_stuck_rows_comes_back_without_waiting(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    ids = published_long_ago(alias, broker, make_relay, 7)
    read_everything(alias, broker)

    step_until_idle(make_relay(redeliver_after_seconds=300, batch_size=2))

    assert sorted(sent_ids(broker)) == sorted([*ids, *ids])


def test_what_is_still_in_the_topic_is_not_sent_again(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    """A consumer that is down for a night must not find its backlog a hundred times."""
    ids = published_long_ago(alias, broker, make_relay, 3)
    relay = make_relay(redeliver_after_seconds=300)

    for _ in range(5):
        step_until_idle(relay)
        clock.advance(120)

    assert sorted(sent_ids(broker)) == ids
    assert relay.totals.redelivered == 0


def test_what_was_taken_and_not_committed_is_not_sent_again(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    ids = published_long_ago(alias, broker, make_relay, 3)
    read_everything(alias, broker, commit=False)

    step_until_idle(make_relay(redeliver_after_seconds=300))

    assert sorted(sent_ids(broker)) == ids


def test_stuck_rows_come_back_also_while_consumers_lag(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    """What was published before the backlog that is being worked off has been in hand; the backlog has not."""
    stuck = published_long_ago(alias, broker, make_relay, 2)
    read_everything(alias, broker)
    relay = make_relay(redeliver_after_seconds=300)
    broker.put(TOPIC, value=b"backlog", key=b"k")
    relay.step()
    assert relay.totals.redelivered == 0, "how far the consumers are is not known yet"
    read_everything(alias, broker)
    broker.put(TOPIC, value=b"more backlog", key=b"k")

    clock.advance(76)
    step_until_idle(relay)

    assert relay.totals.redelivered == 2
    assert sorted(each for each, status in statuses(alias).items() if status == "published") == stuck


def test_what_was_published_behind_the_horizon_is_not_sent_again(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    """The consumers were up to date once; what came after that moment is their backlog, however old it gets."""
    backlog = published_long_ago(alias, broker, make_relay, 3)
    relay = make_relay(redeliver_after_seconds=300)
    relay._horizon.update(database_now(alias) - HOUR, Positions(first={}, end={}, committed={}))

    step_until_idle(relay)

    assert relay.totals.redelivered == 0
    assert sorted(sent_ids(broker)) == backlog


def test_fresh_rows_are_left_alone(alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock) -> None:
    rows(alias, 3)
    relay = make_relay(redeliver_after_seconds=300)
    step_until_idle(relay)
    read_everything(alias, broker)

    clock.advance(120)
    step_until_idle(relay)

    assert relay.totals.redelivered == 0


def test_how_far_consumers_are_is_asked_now_and_then_only(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    real = broker.positions
    monkeypatch.setattr(broker, "positions", lambda route: asked.append(clock()) or real(route))
    relay = make_relay(redeliver_after_seconds=300)

    for _ in range(100):
        relay.step()
        clock.advance(1)

    assert len(asked) == 4, "every 30 s at the most"


# --- leases ------------------------------------------------------------------------------------------------------


def shards_by_owner(alias: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for owner in ShardLease.objects.using(alias).values_list("owner", flat=True):
        counts[owner] = counts.get(owner, 0) + 1
    return counts


def settle(clock: ManualClock, *workers: ShardLeases) -> None:
    for _ in range(3):
        clock.advance(factories.HEARTBEAT.total_seconds())
        for worker in workers:
            worker.refresh()


def test_one_worker_takes_every_shard(alias: str, clock: ManualClock) -> None:
    alone = factories.leases(alias, clock)

    assert alone.due
    assert alone.refresh() == frozenset(range(SHARD_COUNT))
    assert not alone.due


@pytest.mark.parametrize("count", [2, 3, 5])
def test_workers_settle_to_equal_shares_without_overlap(alias: str, clock: ManualClock, count: int) -> None:
    workers = [factories.leases(alias, clock) for _ in range(count)]

    settle(clock, *workers)

    held = [worker.held for worker in workers]
    assert frozenset.union(*held) == frozenset(range(SHARD_COUNT))
    assert sum(len(each) for each in held) == SHARD_COUNT
    assert max(len(each) for each in held) - min(len(each) for each in held) <= 1


def test_worker_that_leaves_frees_its_share_at_once(alias: str, clock: ManualClock) -> None:
    stays, leaves = factories.leases(alias, clock), factories.leases(alias, clock)
    settle(clock, stays, leaves)

    leaves.release()
    clock.advance(10)

    assert stays.refresh() == frozenset(range(SHARD_COUNT))
    assert leaves.held == frozenset()
    assert Worker.objects.using(alias).count() == 1


def test_lease_is_renewed_on_every_beat(alias: str, clock: ManualClock) -> None:
    worker = factories.leases(alias, clock)
    worker.refresh()
    almost_over = database_now(alias) + timedelta(seconds=1)
    ShardLease.objects.using(alias).update(expires_at=almost_over)

    worker.refresh()

    soonest = min(ShardLease.objects.using(alias).values_list("expires_at", flat=True))
    assert soonest > almost_over + factories.TTL / 2


def test_share_of_a_crashed_worker_is_free_when_its_lease_runs_out(alias: str, clock: ManualClock) -> None:
    stays, crashes = factories.leases(alias, clock), factories.leases(alias, clock)
    settle(clock, stays, crashes)
    half = stays.held

    clock.advance(10)
    assert stays.refresh() == half, "not before its time"
    factories.expire(alias, crashes.presence.worker_id)
    clock.advance(10)

    assert stays.refresh() == frozenset(range(SHARD_COUNT))


def test_shard_that_another_takes_in_the_same_moment_is_not_held_twice(
    alias: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, slow, quick = (factories.leases(alias, clock) for _ in range(3))
    first.refresh()
    first.release()
    real, calls = slow._leases, []

    def overtaken() -> Any:
        calls.append(len(calls))
        if len(calls) == 5:  # it has looked at what is free, and is about to take it
            quick.refresh()
        return real()

    monkeypatch.setattr(slow, "_leases", overtaken)
    slow.refresh()

    assert len(quick.held) == SHARD_COUNT // 2
    assert not slow.held & quick.held
    assert slow.held | quick.held == frozenset(range(SHARD_COUNT))


def test_worker_that_slept_through_its_lease_takes_nothing_back(alias: str, clock: ManualClock) -> None:
    sleeper, other = factories.leases(alias, clock), factories.leases(alias, clock)
    sleeper.refresh()
    factories.expire(alias, sleeper.presence.worker_id)
    other.refresh()
    assert other.held == frozenset(range(SHARD_COUNT))

    assert sleeper.refresh() == frozenset(), "everything is held by somebody who is alive"
    settle(clock, other, sleeper)
    assert not sleeper.held & other.held
    assert len(sleeper.held) == len(other.held) == SHARD_COUNT // 2


def test_leases_expire_by_the_clock_of_the_database(alias: str, clock: ManualClock) -> None:
    """The real time-to-live, without a hand on the rows: free after the time and not before."""
    from outbox.leases import RELAY, Presence

    brief = timedelta(milliseconds=300)
    crashed, heir = (
        ShardLeases(
            Presence(service="agent", role=RELAY, worker_id=name, using=alias, ttl=brief),
            heartbeat=timedelta(0),
            clock=clock,
        )
        for name in ("crashed", "heir")
    )
    crashed.refresh()
    expires_at = max(ShardLease.objects.using(alias).values_list("expires_at", flat=True))

    wait_until(lambda: heir.refresh() == frozenset(range(SHARD_COUNT)), timeout=10)

    assert database_now(alias) >= expires_at


def test_services_and_roles_do_not_share_leases(alias: str, clock: ManualClock) -> None:
    relay, consumer = factories.leases(alias, clock), factories.leases(alias, clock, role=f"{CONSUMER}-shards")

    assert relay.refresh() == consumer.refresh() == frozenset(range(SHARD_COUNT))


def test_workers_of_an_hour_ago_are_forgotten(alias: str, clock: ManualClock) -> None:
    old = factories.leases(alias, clock)
    old.refresh()
    Worker.objects.using(alias).update(seen_at=database_now(alias) - 2 * HOUR)

    factories.leases(alias, clock).refresh()

    assert Worker.objects.using(alias).count() == 1


def test_two_relays_share_the_rows_and_send_each_once(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    relays = [make_relay(batch_size=3), make_relay(batch_size=3)]
    for _ in range(3):
        for relay in relays:
            relay.step()
        clock.advance(10)
    ids = rows(alias, 60, key=lambda number: f"key-{number}")

    for _ in range(60):
        for relay in relays:
            relay.step()

    assert sorted(sent_ids(broker)) == ids
    assert all(relay.totals.published > 10 for relay in relays)
    assert status_counts(alias) == {"published": 60}


def test_rows_of_a_crashed_relay_are_taken_over(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    crashed, heir = make_relay(), make_relay()
    for _ in range(3):
        crashed.step()
        heir.step()
        clock.advance(10)
    ids = rows(alias, 40, key=lambda number: f"key-{number}")
    step_until_idle(heir)
    assert len(sent_ids(broker)) < 40

    factories.expire(alias, crashed._leases.presence.worker_id)
    clock.advance(10)
    step_until_idle(heir)

    assert sorted(sent_ids(broker)) == ids


def test_relay_that_slept_through_its_lease_duplicates_at_the_most(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys, clock: ManualClock
) -> None:
    ids = rows(alias, 6)
    sleeper = make_relay(batch_size=3)
    sleeper.step()
    heir = make_relay_after(sleeper, make_relay)
    step_until_idle(heir)
    consumer = factories.consumer(alias, toys, broker=broker)
    toys.fail(ids[0], ValueError("not yet"), times=1)
    consumer.step(100)
    before = {each: (get(alias, each).status, get(alias, each).next_retry_at) for each in ids}

    clock.advance(10)
    step_until_idle(sleeper)

    after = {each: (get(alias, each).status, get(alias, each).next_retry_at) for each in ids}
    assert after == before, "what its consumer put back after the claim is not overwritten"
    make_due(alias)
    for relay in (heir, sleeper):
        clock.advance(10)
        step_until_idle(relay)
    consumer.step(100)
    assert effect_ids(alias) == ids


def test_relay_that_ends_during_an_outage_leaves_its_rows_to_the_next(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop
) -> None:
    ids = rows(alias, 4)
    relay = make_relay(batch_size=2, in_flight_batches=5)
    relay.step()
    broker.go_away()
    stop.set()

    relay.run(stop)

    assert status_counts(alias) == {"pending": 4}
    broker.come_back()
    step_until_idle(make_relay())
    assert sorted(set(sent_ids(broker))) == ids
    assert status_counts(alias) == {"published": 4}


class _Slow(MemoryBroker):
    """Takes its time to answer; ``meanwhile`` is what happens in it."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__(partitions=3)
        self.meanwhile = meanwhile

    def producer(self, *, client_id: str) -> Any:
        return _SlowProducer(self, super().producer(client_id=client_id))


class _SlowProducer:
    def __init__(self, broker: _Slow, producer: Any) -> None:
        self._broker, self._producer = broker, producer

    def send(self, records: Sequence[OutgoingRecord]) -> Any:
        sent = self._producer.send(records)
        broker = self._broker

        class _Late:
            def report(self, timeout: timedelta) -> SendReport:
                broker.meanwhile()
                return sent.report(timeout)

        return _Late()

    def close(self) -> None:
        self._producer.close()


def test_relay_looks_at_its_leases_after_a_slow_answer_before_it_claims_more(
    alias: str, make_relay: MakeRelay, clock: ManualClock
) -> None:
    ids = rows(alias, 4, key=lambda number: f"key-{number}")
    heir = factories.leases(alias, clock)

    def meanwhile() -> None:
        clock.advance(factories.TTL.total_seconds())
        factories.expire(alias, relay._leases.presence.worker_id)
        heir.refresh()

    broker = _Slow(meanwhile)
    relay = make_relay(broker=broker, batch_size=2, in_flight_batches=1)
    relay.step()

    assert relay.step(), "the answer came, and there is more to do"
    assert not relay.step(), "but not for this one"
    assert sorted(sent_ids(broker)) == ids[:2]
    assert status_counts(alias) == {"published": 2, "pending": 2}


def test_relay_that_ends_marks_what_was_acknowledged_and_frees_its_leases(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop, toys: Toys
) -> None:
    ids = rows(alias, 4)
    relay = make_relay(batch_size=2, in_flight_batches=5)
    relay.step()
    assert status_counts(alias) == {"pending": 4}
    stop.set()

    relay.run(stop)

    assert [statuses(alias)[each] for each in ids] == ["published", "published", "pending", "pending"]
    assert shards_by_owner(alias) == {"": SHARD_COUNT}
    assert not Worker.objects.using(alias).exists()


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


# --- a gate on statements ---------------------------------------------------------------------------------------


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

    # seen, switches, renew, what is held, who is alive
    assert len(captured) == 5, captured.captured_queries


# --- the table broker: the same promises with nothing to install ------------------------------------------------


@pytest.fixture
def embedded_broker() -> TableBroker:
    return TableBroker(open_rows=embedded.open_rows)


def through(relay: Relay, consumer: Consumer, alias: str, *, rounds: int = 30) -> None:
    """Let relay and consumer work by turns until nothing is unfinished."""
    for _ in range(rounds):
        step_until_idle(relay)
        while consumer.step(100):
            pass
        make_due(alias)
        if not {"pending", "published"} & set(statuses(alias).values()):
            return


def test_embedded_broker_brings_every_event_to_its_end_in_order(
    alias: str, embedded_broker: TableBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 30, key=lambda number: f"key-{number % 3}", event_type=BULK)
    poison, slow = ids[4], ids[9]
    toys.fail(poison, ValueError("no"))
    toys.fail(slow, ValueError("not yet"), times=2)
    factories.change(alias, poison, max_retry=2)

    through(
        make_relay(broker=embedded_broker, batch_size=7),
        factories.consumer(alias, toys, broker=embedded_broker),
        alias,
    )

    assert {each for each, status in statuses(alias).items() if status == "dead"} == {poison}
    assert status_counts(alias) == {"consumed": 29, "dead": 1}
    for key in range(3):
        assert effect_ids(alias, key=f"key-{key}") == [each for each in ids[key::3] if each != poison]


def test_embedded_consumers_share_the_shards(
    alias: str, embedded_broker: TableBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 60, key=lambda number: f"key-{number}")
    step_until_idle(make_relay(broker=embedded_broker))
    subscriptions = [embedded.open_rows(factories.repository().route) for _ in range(2)]
    for _ in range(2):
        for subscription in subscriptions:
            subscription._leases.refresh()

    parts = [{row_id for row_id, _, _ in subscription.fetch(100)} for subscription in subscriptions]

    assert set.union(*parts) == set(ids)
    assert not set.intersection(*parts)
    assert all(len(part) > 10 for part in parts)
    subscriptions[0].close()
    subscriptions[1]._leases.refresh()
    assert {row_id for row_id, _, _ in subscriptions[1].fetch(100)} == set(ids)


def test_embedded_broker_reads_what_is_published_until_its_consumer_has_moved_it(
    alias: str, embedded_broker: TableBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 3)
    step_until_idle(make_relay(broker=embedded_broker))
    subscription = embedded_broker.subscribe(factories.repository().route, client_id="c")

    first = subscription.receive(max_records=10, timeout=timedelta(0))
    again = subscription.receive(max_records=10, timeout=timedelta(0))
    factories.consumer(alias, toys).handle(first)

    assert [each.offset for each in first] == [each.offset for each in again] == ids
    assert subscription.receive(max_records=10, timeout=timedelta(0)) == []
    subscription.close()
