"""How often handlers are called when some of a batch fail, and that order and effects are as event by event."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from outbox import Delivery
from outbox.consumer.loop import Consumer
from outbox.exceptions import FailedDeliveries
from tests import factories
from tests.consumers import deliver, published
from tests.factories import get, statuses
from tests.integration.misbehaving import check_that_these_failed_alone
from tests.toys import BULK, NOTE, ManualClock, Toys, effect_ids

SLOW_S = 10.0


def call_counts(toys: Toys) -> Counter[int]:
    return Counter(row_id for call in toys.calls for row_id in call)


def let_fail_slowly(toys: Toys, row_ids: Collection[int], clock: ManualClock) -> None:
    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id in row_ids for each in deliveries):
            clock.advance(SLOW_S)

    toys.before = before
    for each in row_ids:
        toys.fail(each, ValueError("no"))


@pytest.fixture
def consumer(alias: str, toys: Toys, clock: ManualClock) -> Consumer:
    """Return a consumer whose budget of time is used up by the test's clock."""
    made = factories.consumer(alias, toys)
    _use_clock(made, clock)
    return made


def _use_clock(consumer: Consumer, clock: ManualClock) -> None:
    consumer._processor._transactions._clock = clock


@pytest.mark.parametrize("database_alias", ["default", "mysql", "postgres"], indirect=True)
def test_slow_failing_event_is_called_twice_at_most_and_its_neighbours_do_not_wait_for_more(
    alias: str, toys: Toys, consumer: Consumer, clock: ManualClock
) -> None:
    ids = published(alias, 500, key=str)
    bad = ids[250]
    let_fail_slowly(toys, {bad}, clock)
    began = clock()

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {bad}, "ValueError", "no")
    counts = call_counts(toys)
    assert counts[bad] <= 2
    assert max(counts.values()) <= 2
    assert clock() - began <= 2 * SLOW_S


def test_several_slow_failing_events_are_called_two_or_three_times_each(
    alias: str, toys: Toys, consumer: Consumer, clock: ManualClock
) -> None:
    ids = published(alias, 60, key=str)
    bad = {ids[5], ids[20], ids[59]}
    let_fail_slowly(toys, bad, clock)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "ValueError", "no")
    assert all(call_counts(toys)[each] <= 3 for each in ids)


@pytest.mark.parametrize("bad_count", [1, 7, 20])
def test_list_handler_that_names_what_failed_is_not_bisected(
    alias: str, toys: Toys, consumer: Consumer, bad_count: int
) -> None:
    ids = published(alias, 20, key=str, event_type=BULK)
    bad = set(ids[:bad_count])
    toys.before = _naming(bad)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "FailedDeliveries", "the handler named these deliveries as failed")
    together = [call for call in toys.calls if len(call) > 1]
    assert together[0] == tuple(ids)
    assert all(set(call) == set(ids) or not bad & set(call) for call in together), "the others are done without them"
    assert all(call_counts(toys)[each] <= 3 for each in ids)


def test_list_handler_that_names_strangers_is_taken_as_one_that_names_none(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 8, key=str, event_type=BULK)
    elsewhere: list[Delivery[Any]] = []
    bad = {ids[3]}

    def name_strangers(deliveries: Sequence[Delivery[Any]]) -> None:
        if not elsewhere:
            elsewhere.extend(deliveries[:1])
        if any(each.outbox_id in bad for each in deliveries):
            other = type(elsewhere[0])(**{**_fields(elsewhere[0]), "outbox_id": 10**9})
            raise FailedDeliveries([other])

    toys.before = name_strangers
    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "FailedDeliveries", "named these deliveries")


def test_list_is_bisected_within_the_budget_of_time_and_then_done_one_by_one(
    alias: str, toys: Toys, consumer: Consumer, clock: ManualClock
) -> None:
    ids = published(alias, 64, key=str, event_type=BULK)
    bad = ids[40]
    let_fail_slowly(toys, {bad}, clock)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {bad}, "ValueError", "no")
    assert call_counts(toys)[bad] <= 4, "once together, once in a savepoint, where its time was up, and once alone"


def test_list_that_fails_fast_is_bisected(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 64, key=str, event_type=BULK)
    bad = ids[40]
    toys.fail(bad, ValueError("no"))

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {bad}, "ValueError", "no")
    assert len(toys.calls) <= 2 + 2 * 6 + 1, "twice the logarithm of its length"


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_what_follows_a_failed_event_in_its_key_waits_for_it_and_other_keys_go_on_in_order(
    alias: str, toys: Toys, consumer: Consumer, event_type: str
) -> None:
    ids = published(alias, 12, key=lambda number: "abc"[number % 3], event_type=event_type)
    bad = ids[3]
    toys.fail(bad, ValueError("no"))

    deliver(alias, consumer, ids)

    of_a, others = ids[::3], [each for each in ids if each not in ids[::3]]
    assert effect_ids(alias, key="a") == of_a[:1]
    assert effect_ids(alias, key="b") == ids[1::3]
    assert effect_ids(alias, key="c") == ids[2::3]
    found = statuses(alias)
    assert {found[each] for each in [of_a[0], *others]} == {"consumed"}
    assert {found[each] for each in of_a[1:]} == {"pending"}
    assert [get(alias, each).retry_count for each in of_a] == [0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_failures_of_every_sort_leave_what_event_by_event_would_have_left(
    alias: str, toys: Toys, clock: ManualClock, seed: int
) -> None:
    """Also where lists are named, time runs out in the middle, and keys are few: the same states, the same effects."""
    chance = random.Random(seed)
    consumer = factories.consumer(alias, toys)
    _use_clock(consumer, clock)
    keys: dict[int, str] = {}
    for _ in range(30):
        key = chance.choice("abcd")
        [row_id] = published(alias, 1, key=key, event_type=chance.choice([NOTE, BULK, BULK]))
        keys[row_id] = key
    bad = {each for each in keys if chance.random() < 0.2}
    named = {each for each in sorted(bad) if chance.random() < 0.5}
    for each in bad - named:
        toys.fail(each, ValueError("no"))

    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        clock.advance(chance.choice([0, 0, 0, 3]))
        _naming(named)(deliveries)

    toys.before = before
    deliver(alias, consumer, list(keys))

    by_key: dict[str, list[int]] = defaultdict(list)
    for row_id, key in keys.items():
        by_key[key].append(row_id)
    for key, ids in by_key.items():
        first_bad = next((at for at, each in enumerate(ids) if each in bad), len(ids))
        assert effect_ids(alias, key=key) == ids[:first_bad]
        assert [get(alias, each).status for each in ids[:first_bad]] == ["consumed"] * first_bad
        attempts = [get(alias, each).retry_count for each in ids[first_bad:]]
        assert attempts == [1] * bool(attempts) + [0] * (len(attempts) - 1)


def _naming(row_ids: Collection[int]) -> Any:
    """Return what raises the failed deliveries of a list by their names."""

    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        failed = [each for each in deliveries if each.outbox_id in row_ids]
        if failed:
            raise FailedDeliveries(failed)

    return before


def _fields(delivery: Delivery[Any]) -> dict[str, Any]:
    return {name: getattr(delivery, name) for name in delivery.__struct_fields__}
