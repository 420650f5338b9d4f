"""The relay waits for a broker or a database that is away: nothing is lost, and it is nobody's fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError, connections

from outbox import signals
from outbox.brokers.base import OutgoingRecord, SendReport
from outbox.brokers.memory import MemoryBroker
from outbox.exceptions import BrokerUnavailableError
from tests import factories
from tests.factories import get, make_due, rows, status_counts
from tests.relays import MakeRelay, make_relay_after, sent_ids, step_until_idle
from tests.toys import RecordingStop, Toys, effect_ids
from tests.transactions import drop_own_connection, kill_own_connection


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
    assert any(text.startswith("broker unavailable, retrying: service=agent worker=relay") for text in texts)
    assert "broker recovered: service=agent worker=relay failures=2" in texts


def test_broker_that_takes_batches_and_answers_none_is_not_said_to_be_back(
    alias: str, make_relay: MakeRelay, stop: RecordingStop, caplog: pytest.LogCaptureFixture
) -> None:
    rows(alias, 1)
    with caplog.at_level(logging.WARNING, "outbox"):
        make_relay(broker=_Flaky("late", "late", "late")).run(stop, once=True)

    said = [text for record in caplog.records if (text := record.getMessage()).startswith("broker recovered")]
    assert said == ["broker recovered: service=agent worker=relay failures=3"]


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


@pytest.mark.parametrize(("error", "state"), [("outage", "unavailable"), ("contention", "busy")])
def test_database_that_goes_away_is_waited_for(
    alias: str,
    broker: MemoryBroker,
    make_relay: MakeRelay,
    stop: RecordingStop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: str,
    state: str,
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

    assert f"database {state}, retrying: service=agent worker=relay" in caplog.text
    assert held == [frozenset(), frozenset()], "leases may have run out meanwhile"
    assert status_counts(alias) == {"published": 3}
    assert sorted(set(sent_ids(broker))) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}


@pytest.mark.parametrize(
    ("database_alias", "breaks_it"),
    [
        ("mariadb", kill_own_connection),
        ("mysql", kill_own_connection),
        ("postgres", kill_own_connection),
        ("postgres", drop_own_connection),
    ],
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


def test_statement_that_the_library_got_wrong_ends_a_run_that_a_person_waits_for(
    make_relay: MakeRelay, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make_relay()

    def wrong(*_args: Any, **_kwargs: Any) -> Any:
        raise ProgrammingError(1054, "Unknown column")

    monkeypatch.setattr(type(relay._repository), "claim", wrong)
    with pytest.raises(ProgrammingError):
        relay.run(stop, once=True)


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
