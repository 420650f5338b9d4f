"""The books of a group member: nothing is committed that the caller did not finish, and nothing goes back."""

from __future__ import annotations

from outbox.brokers.base import IncomingRecord
from outbox.brokers.kafka.ledger import Ledger


def _ledger(*, max_records: int = 100, max_bytes: int = 1_000_000, partitions: tuple[int, ...] = (0, 1)) -> Ledger:
    ledger = Ledger(max_records=max_records, max_bytes=max_bytes)
    ledger.begin(partitions)
    return ledger


def _records(partition: int, *offsets: int, size: int = 0) -> list[IncomingRecord]:
    return [IncomingRecord("topic", partition, offset, None, b"x" * size) for offset in offsets]


def test_nothing_is_owed_for_what_was_only_taken_or_read_ahead() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5, 6, 7))
    ledger.take(2)

    assert ledger.owed == {}
    assert ledger.in_hand([0, 1]) == [0]


def test_what_is_done_is_owed_until_it_is_committed() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5, 6, 7))
    ledger.add(1, _records(1, 2))
    taken = ledger.take(10)

    ledger.mark_done([taken[1], taken[3]])
    assert ledger.owed == {0: 7, 1: 3}
    ledger.mark_committed(ledger.owed)

    assert ledger.owed == {}
    assert ledger.in_hand([0, 1]) == [0]


def test_older_record_takes_nothing_back() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 1, 2))
    taken = ledger.take(3)
    ledger.mark_done([taken[2]])
    ledger.mark_committed(ledger.owed)

    ledger.mark_done([taken[0]])
    ledger.mark_committed({0: 1})

    assert ledger.owed == {}
    assert ledger.in_hand([0]) == []


def test_record_that_was_not_handed_out_is_passed_over() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5, 6))
    ledger.take(1)

    ledger.mark_done(_records(0, 4) + _records(0, 6) + _records(7, 0))

    assert ledger.owed == {}


def test_leaving_partition_drops_what_was_read_ahead_and_still_takes_commits() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 1, 2))
    ledger.add(1, _records(1, 0))
    taken = ledger.take(1)

    ledger.begin_leaving([0])
    ledger.add(0, _records(0, 3))
    assert ledger.take(10) == _records(1, 0)
    ledger.mark_done(taken)

    assert ledger.owed == {0: 1}
    ledger.mark_committed({0: 1})
    assert ledger.in_hand([0]) == []


def test_partition_that_is_gone_owes_nothing_also_when_it_comes_back() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 1, 2, 3))
    taken = ledger.take(2)
    ledger.end([0])
    ledger.mark_done(taken)
    assert (ledger.owed, ledger.ahead, ledger.partitions) == ({}, 0, {1})

    ledger.begin([0])
    ledger.add(0, _records(0, 3))
    ledger.take(1)
    ledger.mark_done(taken)  # of the earlier time, from before the new owner's commits

    assert ledger.owed == {}


def test_records_of_a_foreign_partition_are_dropped() -> None:
    ledger = _ledger(partitions=(1,))
    ledger.add(0, _records(0, 0))

    assert ledger.ahead == 0


def test_topic_that_was_made_anew_begins_anew() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 100, 101))
    ledger.mark_done(ledger.take(2))
    ledger.mark_committed(ledger.owed)

    ledger.add(0, _records(0, 0, 1))
    ledger.mark_done(ledger.take(1))

    assert ledger.owed == {0: 1}


def test_room_is_bounded_by_records_and_by_bytes() -> None:
    by_count = _ledger(max_records=8)
    by_count.add(0, _records(0, *range(6)))
    assert by_count.room == 2
    by_count.add(0, _records(0, 6))
    assert by_count.room == 0, "less than a quarter is free"
    by_count.take(3)
    assert by_count.room == 4

    by_bytes = _ledger(max_records=8, max_bytes=2_000)
    by_bytes.add(0, _records(0, 0, size=2_000))
    assert by_bytes.room == by_bytes.room_bytes == 0
    by_bytes.take(1)
    assert (by_bytes.room, by_bytes.room_bytes) == (8, 2_000)
    by_bytes.add(0, [IncomingRecord("topic", 0, 1, None, None, header_bytes=1_500)])
    assert by_bytes.room_bytes == 300, "headers take room as well"


def test_partition_need_not_wait_for_what_was_handed_back() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 2, 5))
    taken = ledger.take(3)
    ledger.mark_done(taken[:1])
    ledger.mark_committed(ledger.owed)
    assert ledger.in_hand([0]) == [0]

    ledger.hand_back([*taken[1:2], *_records(7, 0)])
    assert ledger.in_hand([0]) == [0], "the one behind it is still at work"
    ledger.hand_back(taken[2:])

    assert ledger.in_hand([0]) == []
    assert ledger.owed == {}, "they stay uncommitted"


def test_partition_need_not_wait_for_what_lies_before_a_record_that_was_handed_back() -> None:
    """A consumer keeps one record for all that are done between two that it holds."""
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 1, 2, 3))
    taken = ledger.take(4)

    ledger.hand_back([taken[2]])
    assert ledger.in_hand([0]) == [0]
    ledger.hand_back([taken[3], taken[0]])

    assert ledger.in_hand([0]) == []


def test_what_was_handed_back_may_still_be_committed() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 0, 1))
    taken = ledger.take(2)
    ledger.hand_back(taken)

    ledger.mark_done(taken)

    assert ledger.owed == {0: 2}


def test_each_assignment_has_a_number_of_its_own() -> None:
    ledger = _ledger()
    first = dict(ledger.assignments)
    ledger.begin_leaving([0])
    assert ledger.assignments == {1: first[1]}
    ledger.end([0])
    ledger.begin([0])

    assert ledger.assignments[1] == first[1]
    assert ledger.assignments[0] > max(first.values())
    assert not set(_ledger().assignments.values()) & set(ledger.assignments.values())


# --- where the client stands -----------------------------------------------------------------------------------------


def _passed(ledger: Ledger, positions: dict[int, int]) -> dict[int, int]:
    return ledger.passed(
        {part: at for part, at in positions.items() if part in ledger.settled}, since=dict(ledger.settled)
    )


def _settle(ledger: Ledger) -> None:
    ledger.mark_done(ledger.take(100))
    ledger.mark_committed(ledger.owed)


def test_position_behind_the_last_record_is_committed_when_that_is() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5, 6))
    assert _passed(ledger, {0: 8, 1: 0}) == {}, "of one partition nothing is done, the other begins"
    taken = ledger.take(2)
    assert _passed(ledger, {0: 8}) == {}
    ledger.mark_done(taken)
    assert _passed(ledger, {0: 8}) == {}, "it is the caller's to commit"
    ledger.mark_committed(ledger.owed)

    assert _passed(ledger, {0: 7}) == {}
    assert _passed(ledger, {0: 8}) == {0: 8}
    ledger.mark_committed({0: 8})

    assert _passed(ledger, {0: 8}) == {}
    assert _passed(ledger, {0: 9}) == {0: 9}


def test_position_is_not_committed_over_a_record_that_the_caller_keeps() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5, 6, 7))
    first, *_ = taken = ledger.take(3)
    ledger.mark_done([first])
    ledger.mark_committed(ledger.owed)
    assert _passed(ledger, {0: 9}) == {}

    ledger.hand_back(taken)  # they stay uncommitted, for the next owner
    assert _passed(ledger, {0: 9}) == {}

    ledger.mark_done(taken)
    ledger.mark_committed(ledger.owed)
    assert _passed(ledger, {0: 9}) == {0: 9}


def test_position_is_not_committed_over_a_record_that_was_only_read_ahead() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5))
    _settle(ledger)
    ledger.add(0, _records(0, 7))

    assert ledger.settled.keys() == {1}
    assert _passed(ledger, {0: 9}) == {}


def test_position_where_nothing_was_read_is_committed() -> None:
    """Nothing but markers is left there, or all of it is of aborted transactions."""
    assert _passed(_ledger(), {0: 3, 1: 0}) == {0: 3}


def test_position_of_another_assignment_is_not_committed() -> None:
    """The partition went and came back while the client was asked: records that it read before come again."""
    ledger = _ledger()
    before = ledger.settled
    ledger.end([0])
    ledger.begin([0])

    assert ledger.passed({0: 9, 1: 9}, since=before) == {1: 9}


def test_position_of_a_partition_that_leaves_is_not_committed() -> None:
    ledger = _ledger()
    before = ledger.settled
    ledger.begin_leaving([0])
    ledger.end([1])

    assert ledger.passed({0: 9, 1: 9}, since=before) == {}


def test_position_of_a_topic_that_was_made_anew_waits_for_its_records() -> None:
    ledger = _ledger()
    ledger.add(0, _records(0, 5))
    _settle(ledger)
    ledger.add(0, _records(0, 0, 1))
    assert _passed(ledger, {0: 9}) == {}
    taken = ledger.take(2)
    assert _passed(ledger, {0: 9}) == {}
    ledger.mark_done(taken)
    ledger.mark_committed(ledger.owed)
    assert _passed(ledger, {0: 9}) == {0: 9}
