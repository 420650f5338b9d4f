"""Kafka is stopped, killed and frozen under running producers and consumers; they go on by themselves.

These tests take the server away from everything else that uses it, so they are marked and run last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from outbox.brokers.base import Broker, IncomingRecord
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError
from scripts.services import control
from tests.contract.brokers import KafkaHarness, elapsed_s, ids, ids_by_key, records
from tests.contract.outage import outage_is_said_and_survived
from tests.services import require
from tests.waiting import wait_until

pytestmark = pytest.mark.disruptive

RECOVERY_S = 30.0
"""From the server's return until everything flows again; the server itself needs some of it to load its groups."""


@pytest.fixture
def harness() -> Iterator[KafkaHarness]:
    require("kafka")
    if not control.is_managed("kafka"):
        pytest.skip("this Kafka was not started from here, so it is not taken away from here")
    opened = KafkaHarness(request_timeout_seconds=3.0)
    yield opened
    control.start("kafka")
    opened.close()


class Writer:
    """Sends without end, each batch again until it is acknowledged, in the way of a relay."""

    def __init__(self, broker: Broker, route: ServiceRoute) -> None:
        self.acknowledged = 0
        self.outages = 0
        self._broker, self._route = broker, route
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        producer = self._broker.producer(client_id="writer")
        try:
            while not self._stop.is_set():
                waiting = records(self._route, 20, first_id=self.acknowledged + 1)
                while waiting and not self._stop.is_set():
                    try:
                        report = producer.send(waiting).report(timedelta(seconds=3))
                    except BrokerUnavailableError:
                        self.outages += 1
                        continue
                    assert report.refused == ()
                    self.outages += bool(report.unanswered)
                    done = set(report.acknowledged)
                    waiting = [record for record in waiting if record.outbox_id not in done]
                    self.acknowledged += len(done)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.error = error
        finally:
            producer.close()

    def stop(self) -> int:
        """Return how many records are acknowledged; a last batch may be so in part."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.acknowledged


class Reader:
    """Receives and commits without end, through outages, in the way of a consumer."""

    def __init__(self, broker: Broker, route: ServiceRoute) -> None:
        self.received: list[IncomingRecord] = []
        self.outages = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._subscription = broker.subscribe(route, client_id="reader")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    batch = self._subscription.receive(max_records=50, timeout=timedelta(milliseconds=200))
                    self.received.extend(batch)
                    if batch:
                        self._subscription.commit(batch)
                except BrokerUnavailableError:
                    self.outages += 1
                    self._stop.wait(0.1)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.error = error
        finally:
            self._subscription.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("away", "back"),
    [
        pytest.param(control.stop, control.start, id="stopped"),
        pytest.param(control.kill, control.start, id="killed"),
        pytest.param(control.pause, control.resume, id="frozen"),
    ],
)
def test_work_goes_on_after_an_outage(
    harness: KafkaHarness, away: Callable[[str], None], back: Callable[[str], None]
) -> None:
    route = harness.ready_route()
    writer, reader = Writer(harness.broker, route), Reader(harness.broker, route)
    wait_until(lambda: writer.acknowledged > 100 and len(reader.received) > 100, timeout=RECOVERY_S)

    away("kafka")
    wait_until(lambda: writer.outages > 1 and reader.outages > 1, timeout=60, message="both say the outage")
    back("kafka")
    returned = time.monotonic()
    written, read = writer.acknowledged, len(reader.received)
    wait_until(
        lambda: writer.acknowledged > written + 100 and len(reader.received) > read + 100,
        timeout=RECOVERY_S,
        message="both work again",
    )
    print(f"both work again {elapsed_s(returned):.1f} s after the server's return")

    expected = set(range(1, writer.stop() + 1))
    wait_until(lambda: set(ids(reader.received)) >= expected, timeout=RECOVERY_S, message="all that was acknowledged")
    wait_until(lambda: _lag(harness.broker, route) == 0, timeout=RECOVERY_S, message="all committed")
    reader.stop()
    for numbers in ids_by_key(reader.received).values():
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts)


def test_long_outage_ends_with_a_new_client(harness: KafkaHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.brokers.kafka.subscription._BEGIN_AFRESH_AFTER_S", 1.0)
    route = harness.ready_route()
    writer, reader = Writer(harness.broker, route), Reader(harness.broker, route)
    wait_until(lambda: len(reader.received) > 100, timeout=RECOVERY_S)
    first_client = reader._subscription._member

    control.kill("kafka")
    wait_until(lambda: reader._subscription._member is not first_client, timeout=60, message="the client is given up")
    control.start("kafka")

    read = len(reader.received)
    wait_until(lambda: len(reader.received) > read + 100, timeout=RECOVERY_S, message="records come again")
    expected = set(range(1, writer.stop() + 1))
    wait_until(lambda: set(ids(reader.received)) >= expected, timeout=RECOVERY_S)
    reader.stop()


def test_outage_is_said_and_survived(harness: KafkaHarness) -> None:
    outage_is_said_and_survived(harness)


def _lag(broker: Broker, route: ServiceRoute) -> int | None:
    try:
        positions = broker.positions(route)
    except BrokerUnavailableError:
        return None
    return None if positions is None else positions.lag
