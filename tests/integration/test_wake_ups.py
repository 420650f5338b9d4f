"""A commit on the same host wakes the relay that pauses; a rollback does not, and nobody depends on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connections, transaction

from outbox import publish
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import WakeUpSocket, open_wake_ups
from outbox.lifecycle import Status
from outbox.registry.catalog import relay_hints, wake_up_place
from outbox.relay.pauses import IdlePauses
from tests import factories
from tests.conftest import Configure
from tests.consumers import deliver, published
from tests.factories import change, database_now, get, statuses
from tests.publishing import rolled_back, snapshot
from tests.threads import Threads
from tests.toys import SERVICE, RecordingStop, Toys
from tests.waiting import wait_until

AN_HOUR_MS = 3_600_000
AN_HOUR = timedelta(hours=1)


@pytest.fixture
def alias(database_alias: str, configure: Configure, tmp_path: Path) -> str:
    """Have publishers and relays of this test meet where nobody else is."""
    configure(RELAY={"WAKE_UP_FOLDER": str(tmp_path)})
    return database_alias


@pytest.fixture
def relays_end(alias: str) -> Iterator[WakeUpSocket]:
    opened = open_wake_ups(wake_up_place(), SERVICE)
    assert opened is not None
    yield opened
    opened.close()


def test_relay_that_pauses_is_woken_by_a_commit(alias: str, broker: MemoryBroker, toys: Toys) -> None:
    relay = factories.relay(
        alias,
        broker,
        toys,
        time.monotonic,
        poll_interval_ms=AN_HOUR_MS,
        max_poll_interval_ms=AN_HOUR_MS,
        wake_ups=lambda: open_wake_ups(wake_up_place(), SERVICE),
    )
    stop, threads = StopFlag(), Threads()
    running = threads.start(lambda: relay.run(stop))
    try:
        wait_until(lambda: relay._pauses.are_ended_by_wake_ups and relay._leases.held, message="the relay is there")
        wait_until(lambda: relay_hints().is_heard(SERVICE), message="publishers see it")
        for number in range(3):
            publish(snapshot(f"c-{number}"))
            wait_until(lambda: set(statuses(alias).values()) == {"published"}, message=f"event {number} is relayed")
    finally:
        stop.set()
        running.join(10)
    threads.check_all_ended()


def test_wake_up_for_what_a_step_has_found_is_not_taken_for_one_that_leads_to_nothing(
    alias: str, relays_end: WakeUpSocket
) -> None:
    pauses = IdlePauses(shortest=timedelta(hours=1), longest=timedelta(hours=1), open_wake_ups=lambda: relays_end)
    pauses.open()
    publish(snapshot())

    assert pauses.after(True) == timedelta(0)

    assert relays_end.clear() is False


def test_hint_comes_with_the_commit(alias: str, relays_end: WakeUpSocket) -> None:
    with transaction.atomic(using=alias):
        publish(snapshot())
        assert relays_end.clear() is False, "nothing is there yet"
    assert relays_end.clear() is True


def test_hint_comes_at_once_without_a_transaction(alias: str, relays_end: WakeUpSocket) -> None:
    publish(snapshot())
    assert relays_end.clear() is True


def test_rollback_gives_none(alias: str, relays_end: WakeUpSocket) -> None:
    with rolled_back(alias):
        publish(snapshot())
    assert relays_end.clear() is False


def test_savepoint_that_is_rolled_back_takes_only_its_own_hint_along(alias: str, relays_end: WakeUpSocket) -> None:
    with transaction.atomic(using=alias):
        with rolled_back(alias):
            publish(snapshot("c-1"))
        publish(snapshot("c-2"))
    assert relays_end.clear() is True

    with transaction.atomic(using=alias):
        publish(snapshot("c-3"))
        with rolled_back(alias):
            publish(snapshot("c-4"))
    assert relays_end.clear() is True

    with transaction.atomic(using=alias), rolled_back(alias):
        publish(snapshot("c-5"))
    assert relays_end.clear() is False


def test_transaction_asks_for_one_hint_however_much_it_publishes(alias: str, relays_end: WakeUpSocket) -> None:
    with transaction.atomic(using=alias):
        for number in range(10):
            publish(snapshot(f"c-{number}"))
        assert len(connections[alias].run_on_commit) == 1
    assert relays_end.clear() is True


def test_nothing_is_asked_for_where_no_relay_is(alias: str) -> None:
    """So a test that looks at what runs on commit sees its own only."""
    with transaction.atomic(using=alias):
        publish(snapshot())
        assert connections[alias].run_on_commit == []


def test_publishing_works_in_a_transaction_that_is_managed_by_hand(alias: str, relays_end: WakeUpSocket) -> None:
    """Django has no hook there that runs at the commit."""
    connection = connections[alias]
    connection.set_autocommit(False)
    try:
        publish(snapshot())
        connection.commit()
    finally:
        connection.set_autocommit(True)

    assert relays_end.clear() is False
    assert list(statuses(alias).values()) == [Status.PENDING]


def test_event_that_was_waited_for_wakes_the_relay_for_the_next(
    alias: str, toys: Toys, relays_end: WakeUpSocket
) -> None:
    first, second = published(alias, 2)
    consumer = factories.consumer(alias, toys, wake_relays=relay_hints().giver(SERVICE))
    deliver(alias, consumer, [second])
    change(alias, [second], next_retry_at=database_now(alias) + AN_HOUR)
    assert relays_end.clear() is False

    deliver(alias, consumer, [first])

    assert relays_end.clear() is True
    assert get(alias, second).next_retry_at <= database_now(alias)


def test_hints_for_others_rows_do_not_drive_a_relay(alias: str, broker: MemoryBroker, toys: Toys) -> None:
    """Each hint would cost every other relay a look: after one for nothing it is deaf for its shortest pause."""
    heard: list[bool] = []

    class Hinted(RecordingStop):
        def wait(self, pause: timedelta, *, until: object = None) -> bool:
            heard.append(until is not None)
            relay_hints().give(SERVICE)
            if len(heard) == 7:
                self.set()
            return super().wait(pause, until=until)

    relay = factories.relay(
        alias,
        broker,
        toys,
        time.monotonic,
        wake_ups=lambda: open_wake_ups(wake_up_place(), SERVICE),
        poll_interval_ms=20,
        max_poll_interval_ms=1000,
    )
    stop = Hinted()
    relay.run(stop)

    assert heard == [True, False, True, False, True, False, True]
    assert stop.pauses[1::2] == [timedelta(milliseconds=20)] * 3
