"""The relay sends again what is stuck, and nothing that its consumers still have before them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from outbox import signals
from outbox.brokers.base import Positions
from outbox.brokers.memory import MemoryBroker
from outbox.exceptions import BrokerUnavailableError
from outbox.models import ShardLease, Worker
from tests import factories
from tests.factories import database_now, rows, statuses
from tests.relays import TOPIC, MakeRelay, sent_ids, step_until_idle
from tests.toys import ManualClock, RecordingStop, Toys, effect_ids

HOUR = timedelta(hours=1)


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


def test_what_is_taken_again_and_again_comes_with_growing_pauses(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    """Another installation in the group takes the records: the topic must not be flooded for ever."""
    ids = rows(alias, 3)
    relay = make_relay(redeliver_after_seconds=300)
    step_until_idle(relay)
    waited_s, pauses_s = 0, []
    for _ in range(160):  # eighty minutes, half a minute each
        read_everything(alias, broker)
        clock.advance(30)
        factories.let_get_stuck(alias, ids, by=timedelta(seconds=30))
        waited_s += 30
        sent = relay.totals.published
        step_until_idle(relay)
        if relay.totals.published > sent:
            pauses_s.append(waited_s)
            waited_s = 0

    assert [round(each / 300) for each in pauses_s] == [1, 2, 4, 8], "as ever the first time, then twice as long"
    assert set(statuses(alias).values()) == {"published"}
    assert relay.totals.redelivered == 3 * 4


def test_fresh_rows_beside_redelivered_ones_keep_their_pause(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    stuck = published_long_ago(alias, broker, make_relay, 2)
    read_everything(alias, broker)
    fresh = rows(alias, 2)

    step_until_idle(make_relay(redeliver_after_seconds=300))

    def pause(row_id: int) -> float:
        found = factories.get(alias, row_id)
        assert found.published_at is not None
        assert found.next_retry_at is not None
        return (found.next_retry_at - found.published_at).total_seconds()

    assert [round(pause(each), -1) for each in [*stuck, *fresh]] == [600, 600, 300, 300]


def test_what_a_consumer_misses_comes_back_as_soon_as_ever(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    """Its successors come to this group's member, so its own record does too; nobody waits for an hour."""
    [first] = published_long_ago(alias, broker, make_relay, 1)
    read_everything(alias, broker)
    step_until_idle(make_relay(redeliver_after_seconds=300))
    Worker.objects.using(alias).all().delete()
    ShardLease.objects.using(alias).all().delete()
    read_everything(alias, broker)
    [second] = rows(alias, 1)
    relay = make_relay(redeliver_after_seconds=300)
    step_until_idle(relay)
    factories.change(alias, first, updated_at=database_now(alias) - timedelta(seconds=301))
    consumer = factories.consumer(alias, toys, broker=broker, redeliver_after=timedelta(seconds=300))

    consumer.step(100)

    assert statuses(alias) == {first: "pending", second: "pending"}, "it was to be sent again in ten minutes only"
    factories.make_due(alias)
    step_until_idle(relay)
    while consumer.step(100):
        pass
    assert effect_ids(alias) == [first, second]


def test_more_than_a_batch_of_stuck_rows_comes_back_without_waiting(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    ids = published_long_ago(alias, broker, make_relay, 7)
    read_everything(alias, broker)

    step_until_idle(make_relay(redeliver_after_seconds=300, batch_size=2))

    assert sorted(sent_ids(broker)) == sorted([*ids, *ids])


def test_positions_that_are_refused_stop_no_sending(
    alias: str, make_relay: MakeRelay, stop: RecordingStop, caplog: pytest.LogCaptureFixture
) -> None:
    """A user that may write to the topic need not be one that may read the group."""
    broker = MemoryBroker(partitions=3)

    def refuse(_route: object) -> None:
        raise BrokerUnavailableError("Group Authorization Failed")

    broker.positions = refuse  # type: ignore[method-assign,assignment]
    ids = rows(alias, 3)
    relay = make_relay(broker=broker)

    relay.run(stop, once=True)

    assert sorted(sent_ids(broker)) == ids
    assert set(statuses(alias).values()) == {"published"}
    [said] = [text for each in caplog.records if "Group Authorization Failed" in (text := each.getMessage())]
    assert said.startswith("relay of agent: lost records are not sent again while the group's positions cannot be read")


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
    relay._lost._horizon.update(database_now(alias) - HOUR, Positions(first={}, end={}, committed={}))

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
