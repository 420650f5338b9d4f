"""What is remembered until it is marked, also while a second hand does the marking."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import pytest

from outbox.relay.confirmations import OtherHands, OwnHand, PublishedMarks
from outbox.storage.rows import Counts, Marked

DEADLINE_S = 10


class Table:
    """Stands for the repository: marks when it is let, or fails."""

    def __init__(self) -> None:
        self.marked: list[int] = []
        self.held: set[int] = set()
        self.error: Exception | None = None
        self.may_mark = threading.Event()
        self.may_mark.set()
        self.is_asked = threading.Event()
        self.threads: set[int] = set()
        self.counts: list[dict[int, tuple[int, int]]] = []

    def mark_published(
        self, ids: Collection[int], *, claimed_at: Any, redeliver_after: timedelta, counts: Counts
    ) -> Marked:
        self.counts.append(dict(counts))
        self.threads.add(threading.get_ident())
        self.is_asked.set()
        assert self.may_mark.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        done = [row_id for row_id in ids if row_id not in self.held]
        self.marked += done
        return Marked(len(done), [row_id for row_id in ids if row_id in self.held])


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture(params=["own", "second"])
def hand(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = OwnHand() if request.param == "own" else OtherHands("marks")
    yield made
    made.close()


def marks_of(table: Any, hand: Any) -> PublishedMarks:
    return PublishedMarks(table, redeliver_after=timedelta(minutes=5), hand=hand)


def test_what_is_marked_is_forgotten(table: Table, hand: Any) -> None:
    marks = marks_of(table, hand)
    marks.add([1, 2], claimed_at="then")
    marks.add([3], claimed_at="now")
    marks.finish()

    assert (table.marked, len(marks)) == ([1, 2, 3], 0)


def test_what_a_row_was_claimed_at_goes_with_it_until_it_is_marked(table: Table, hand: Any) -> None:
    table.held = {2}
    marks = marks_of(table, hand)
    marks.add([1, 2, 3], claimed_at="then", counts={2: (1, 0), 3: (0, 4), 9: (5, 5)})
    marks.finish()
    marks.try_again()
    table.held = set()
    marks.try_again()
    marks.try_again()

    assert table.counts == [{2: (1, 0), 3: (0, 4)}, {2: (1, 0)}, {2: (1, 0)}]


def test_what_somebody_holds_is_marked_later(table: Table, hand: Any) -> None:
    table.held = {2}
    marks = marks_of(table, hand)
    marks.add([1, 2], claimed_at="then")
    marks.finish()
    assert (1 in marks, 2 in marks) == (False, True)

    marks.try_again()
    assert 2 in marks
    table.held = set()
    marks.try_again()
    assert (table.marked, len(marks)) == ([1, 2], 0)


def test_failure_is_told_and_nothing_forgotten(table: Table, hand: Any) -> None:
    marks = marks_of(table, hand)
    table.error = ConnectionError("away")

    def add(row_id: int) -> None:
        marks.add([row_id], claimed_at="then")
        marks.finish()

    for row_id in (1, 2):
        with pytest.raises(ConnectionError):
            add(row_id)
    with pytest.raises(ConnectionError):
        marks.try_again()
    assert (1 in marks, 2 in marks) == (True, True)
    table.error = None
    marks.try_again()
    assert (sorted(table.marked), len(marks)) == ([1, 2], 0)


def test_other_hands_mark_while_their_caller_goes_on(table: Table) -> None:
    hands = OtherHands("marks", threads=2)
    marks = marks_of(table, hands)
    table.may_mark.clear()

    marks.add([1, 2], claimed_at="then")  # with one's own hand this would wait for the table
    marks.add([3], claimed_at="then")
    assert table.is_asked.wait(DEADLINE_S)
    assert all(row_id in marks for row_id in (1, 2, 3)), "not to be sent again meanwhile"

    ahead = threading.Thread(target=lambda: marks.add([4], claimed_at="now"))
    ahead.start()
    ahead.join(0.05)
    assert ahead.is_alive(), "nobody gets further ahead than by a piece for each hand"
    table.may_mark.set()
    ahead.join(DEADLINE_S)
    marks.finish()
    assert (sorted(table.marked), len(marks)) == ([1, 2, 3, 4], 0)
    assert len(table.threads) == 2
    assert threading.get_ident() not in table.threads
    hands.close()


def test_failure_is_told_when_nothing_is_under_way_any_more() -> None:
    hands = OtherHands("marks", threads=2)
    done: list[str] = []
    has_failed = threading.Event()

    def fail() -> None:
        try:
            raise ConnectionError("away")
        finally:
            has_failed.set()

    def go_on() -> None:
        assert has_failed.wait(DEADLINE_S)
        done.append("the other")

    hands.begin(fail)
    hands.begin(go_on)
    with pytest.raises(ConnectionError):
        hands.begin(lambda: done.append("not begun"))
    assert done == ["the other"]
    hands.finish()  # and it was told once
    hands.close()


def test_hand_that_never_worked_can_be_closed() -> None:
    OtherHands("marks").close()
