"""The loop of the consumer: what it waits for, when it ends, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections

from outbox import Discard, signals
from outbox.brokers.base import IncomingRecord
from outbox.consumer.loop import Consumer
from outbox.coordination.heartbeat import NullHeartbeat
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError
from outbox.lifecycle import Status
from outbox.models import ServiceSwitch, Worker
from outbox.storage.pause_flags import Switches
from outbox.wire.tracing import current_traceparent
from tests import factories
from tests.consumers import Scripted, deliver, published, subscribing
from tests.factories import get, record, records_of, row
from tests.toys import NOTE, RecordingStop, Toys, effect_ids

# --- the loop ----------------------------------------------------------------------------------------------------


def test_offsets_are_committed_after_the_database(alias: str, toys: Toys) -> None:
    [row_id] = published(alias, 1)
    subscription = Scripted(records_of(alias, [row_id]))
    seen: list[str] = []
    real_commit = subscription.commit

    def commit(records: Sequence[IncomingRecord]) -> None:
        seen.append(get(alias, row_id).status)
        real_commit(records)

    subscription.commit = commit  # type: ignore[method-assign]
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    assert consumer.step(10) is True
    assert consumer.step(10) is False
    assert seen == ["consumed"]
    assert len(subscription.committed) == 1


def test_commit_that_fails_is_made_up_for_without_a_second_effect(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    records = records_of(alias, ids)
    subscription = Scripted(records, records, commit=[BrokerUnavailableError("away"), None])
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    consumer.run(stop, max_events=4)

    assert effect_ids(alias) == ids
    assert subscription.committed == records
    assert subscription.closed


def test_broker_that_goes_away_is_waited_for(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    away = BrokerUnavailableError("away")
    subscription = Scripted(away, away, records_of(alias, ids))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}
    assert stop.pauses[0] < stop.pauses[1], "the pauses grow"


@pytest.mark.parametrize("lost_at", ["receive", "commit"])
def test_lost_subscription_is_followed_by_a_new_one(alias: str, toys: Toys, stop: RecordingStop, lost_at: str) -> None:
    ids = published(alias, 2)
    records = records_of(alias, ids)
    lost = LostSubscriptionError("fenced")
    first = Scripted(lost) if lost_at == "receive" else Scripted(records, commit=[lost])
    second = Scripted(records)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(first, second))

    consumer.run(stop, max_events=2 if lost_at == "receive" else 4)

    assert effect_ids(alias) == ids
    assert first.closed
    assert second.committed == records


def test_database_that_goes_away_leaves_the_records_in_hand(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    subscription = Scripted(records_of(alias, ids))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))
    real_handle = consumer.handle
    troubles = iter([OperationalError(2006, "gone"), OperationalError(2013, "lost")])

    def handle(records: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        for error in troubles:
            cause = type("Gone", (Exception,), {"sqlstate": "57P01"})()
            text = {"sqlite": OperationalError("disk I/O error")}.get(connections[alias].vendor, error)
            raise text from cause
        return real_handle(records)

    consumer.handle = handle  # type: ignore[method-assign]
    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert len(subscription.committed) == 2


def test_fault_of_the_library_is_waited_out_and_charged_to_nobody(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(Scripted(records_of(alias, ids))))
    real_handle = consumer.handle
    faults = iter(range(3))

    def wrong(records: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        for _ in faults:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT nothing FROM nowhere")
        return real_handle(records)

    consumer.handle = wrong  # type: ignore[method-assign]
    toys.before = lambda _deliveries: stop.set()
    consumer.run(stop)

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}
    assert stop.pauses[0] < stop.pauses[1] < stop.pauses[2], "the pauses grow"


def test_fault_of_the_library_is_raised_where_a_person_waits_for_the_end(
    alias: str, toys: Toys, stop: RecordingStop
) -> None:
    consumer = factories.consumer(alias, toys, subscribe=subscribing(Scripted(records_of(alias, published(alias, 1)))))

    def wrong(_records: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
        return []

    consumer.handle = wrong  # type: ignore[method-assign]
    with pytest.raises(DatabaseError):
        consumer.run(stop, is_drained=lambda: True)


def test_consumer_that_cannot_begin_leaves_nothing_open(alias: str, toys: Toys, stop: RecordingStop) -> None:
    class Unstartable(NullHeartbeat):
        closed = False

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

        def close(self, *, deregister: bool = True) -> None:
            self.closed = True

    heartbeat = Unstartable()
    with pytest.raises(RuntimeError):
        factories.consumer(alias, toys, heartbeat=heartbeat, subscribe=subscribing()).run(stop)
    assert heartbeat.closed


def test_paused_consumer_receives_nothing_until_it_is_let_go_on(alias: str, toys: Toys) -> None:
    ids = published(alias, 1)
    subscription = Scripted(records_of(alias, ids))
    heartbeat = NullHeartbeat(Switches(consumer_paused=True))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription), heartbeat=heartbeat)

    assert consumer.step(10) is False
    heartbeat.switches = Switches()
    assert consumer.step(10) is True
    assert effect_ids(alias) == ids


def test_consumer_is_seen_while_it_works_and_gone_when_it_ends(alias: str, toys: Toys, stop: RecordingStop) -> None:
    seen: list[list[str]] = []
    toys.before = lambda _deliveries: seen.append(
        list(Worker.objects.using(alias).values_list("service", "role", named=False))
    )
    subscription = Scripted(records_of(alias, published(alias, 1)))
    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop, max_events=1)

    assert seen == [[("agent", "consumer")]]
    assert not Worker.objects.using(alias).exists()


def test_loop_ends_when_nothing_is_left_and_not_before(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    subscription = Scripted(records_of(alias, ids[:1]), [], records_of(alias, ids[1:]))
    answers = iter([False, True])

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop, is_drained=lambda: next(answers))

    assert effect_ids(alias) == ids


def test_paused_loop_waits_and_ends_where_it_would_wait_for_nothing(
    alias: str, toys: Toys, stop: RecordingStop
) -> None:
    ServiceSwitch.objects.using(alias).create(service="agent", consumer_paused=True)
    subscription = Scripted(records_of(alias, published(alias, 1)))
    real_wait = stop.wait

    def wait(pause: timedelta) -> bool:
        stop.set()
        return real_wait(pause)

    stop.wait = wait  # type: ignore[method-assign]
    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop)
    assert stop.pauses, "without a pause it would turn as fast as it can"

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(RecordingStop(), is_drained=lambda: False)
    assert effect_ids(alias) == []


def test_stop_ends_the_loop_after_the_batch_in_hand(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 4)
    subscription = Scripted(records_of(alias, ids[:2]), records_of(alias, ids[2:]))
    toys.before = lambda _deliveries: stop.set()

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop)

    assert effect_ids(alias) == ids[:2]
    assert len(subscription.committed) == 2
    assert subscription.closed


# --- telling -----------------------------------------------------------------------------------------------------


def test_listeners_hear_what_was_committed_and_cannot_break_it(alias: str, toys: Toys, consumer: Consumer) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    names = ("consumed", "retried", "waited", "buried", "rejected")

    def listener_of(name: str) -> Callable[..., None]:
        def listen(sender: str, signal: Any, **fields: Any) -> None:
            heard.append((name, fields | {"open": connections[alias].in_atomic_block}))
            raise RuntimeError("a listener's own fault")

        return listen

    listeners = {name: listener_of(name) for name in names}
    good, failing, waiting, dying = (row(alias, key=key, status=Status.PUBLISHED) for key in ("a", "b", "b", "c"))
    toys.fail(failing, ValueError("no"))
    toys.fail(dying, Discard("never"))
    for name, listener in listeners.items():
        getattr(signals, name).connect(listener)
    try:
        consumer.handle([*records_of(alias, [good, failing, waiting, dying]), record(b"garbage")])
    finally:
        for name, listener in listeners.items():
            getattr(signals, name).disconnect(listener)

    assert {name for name, _ in heard} == set(names)
    assert not any(fields["open"] for _, fields in heard)
    by_name = dict(heard)
    assert by_name["consumed"]["event_types"] == {NOTE: 1}
    assert (by_name["retried"]["outbox_id"], by_name["retried"]["attempt"]) == (failing, 1)
    assert (by_name["buried"]["outbox_id"], by_name["buried"]["reason"]) == (dying, "Discard: never")
    assert consumer.totals.handled == 5


def test_events_of_a_handler_continue_the_trace_of_its_event(alias: str, toys: Toys, consumer: Consumer) -> None:
    traced, untraced = (
        row(alias, key="a", traceparent="00-aa-bb-01", status=Status.PUBLISHED),
        row(alias, key="b", status=Status.PUBLISHED),
    )
    seen: list[str] = []
    toys.before = lambda _deliveries: seen.append(current_traceparent())

    deliver(alias, consumer, [traced, untraced])

    assert seen == ["00-aa-bb-01", ""]
    assert current_traceparent() == ""
