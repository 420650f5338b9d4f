"""However many events of a key wait, few are sent again for nothing, and those whose turn it is come soon."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from outbox.consumer.waiting import WIDEST, WaitingEvents

SECOND = timedelta(seconds=1)


def test_first_few_come_with_their_predecessor_and_the_others_ever_later() -> None:
    waiting = WaitingEvents()
    waiting.put_back("k", range(10, 60))

    patience = [waiting.patience_of("k", row_id, in_hand=0) / SECOND for row_id in range(10, 60)]

    assert patience == [0] * 20 + [1] * 20 + [2] * 10
    assert waiting.patience_of("other", 60, in_hand=0) == 2 * SECOND


def test_many_that_wait_come_about_twenty_five_a_second_whatever_their_keys() -> None:
    waiting = WaitingEvents()
    for number in range(1000):
        waiting.put_back(f"k{number}", [number])

    assert waiting.patience_of("another", 5000, in_hand=0) == 40 * SECOND


def test_those_in_hand_count_too() -> None:
    assert WaitingEvents().patience_of("k", 7, in_hand=41) == 2 * SECOND


def test_more_and_more_are_woken_while_they_are_right_to_come() -> None:
    waiting = WaitingEvents()
    waiting.put_back("k", range(1000))
    woken = []
    left = list(range(1000))
    for _ in range(12):
        ids = waiting.next_of("k")
        assert ids == left[: len(ids)], "in the order of ids"
        woken.append(len(ids))
        waiting.finished("k", gone=[], woken=ids)
        left = left[len(ids) :]

    assert woken == [1, 2, 4, 8, 16, 32, 64, WIDEST, WIDEST, WIDEST, WIDEST, WIDEST]
    waiting.put_back("k", left[:1])
    assert len(waiting.next_of("k")) == 1, "they came too early"


def test_who_is_in_hand_or_finished_is_not_woken() -> None:
    waiting = WaitingEvents()
    waiting.put_back("k", [3, 4, 5])

    assert waiting.next_of("k", besides=[3]) == [4]
    waiting.finished("k", gone=[4], woken=[])
    assert waiting.next_of("k") == [3, 5]


def test_what_nobody_waits_for_is_forgotten() -> None:
    waiting = WaitingEvents()
    waiting.put_back("k", [3, 3, 4])
    assert len(waiting) == 2
    waiting.finished("k", gone=[3], woken=[4])
    waiting.finished("k", gone=[4], woken=[])

    assert (len(waiting), waiting.next_of("k")) == (0, [])


def test_memory_is_bounded_and_loses_the_oldest_keys() -> None:
    waiting = WaitingEvents(limit=10)
    for number in range(10):
        waiting.put_back(f"k{number}", range(4))

    assert len(waiting) <= 10
    assert waiting.next_of("k0") == []
    assert waiting.next_of("k9") == [0]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.sets(st.integers(0, 30))), max_size=30))
def test_it_counts_what_it_holds(steps: list[tuple[str, bool, set[int]]]) -> None:
    waiting = WaitingEvents()
    held: dict[str, set[int]] = {"a": set(), "b": set()}
    for key, is_put_back, ids in steps:
        if is_put_back:
            waiting.put_back(key, ids)
            held[key] |= ids
        else:
            woken = waiting.next_of(key, besides=ids)
            assert woken == sorted(held[key] - ids)[: len(woken)]
            waiting.finished(key, gone=sorted(ids), woken=woken)
            held[key] -= ids | set(woken)
    assert len(waiting) == len(held["a"]) + len(held["b"])
