"""Records that are held back: no commit passes one, and none of them stays for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from outbox.brokers.base import IncomingRecord
from outbox.consumer.held import HOLD_FOR, YOUNG_FOR, HeldRecords
from tests.properties import bounded
from tests.toys import ManualClock

PARTITIONS = (0, 1)


def record(offset: int, partition: int = 0) -> IncomingRecord:
    return IncomingRecord(topic="t", partition=partition, offset=offset, key=b"k", value=b"{}")


def offsets(records: Sequence[IncomingRecord]) -> list[tuple[int, int]]:
    return [(each.partition, each.offset) for each in records]


@dataclass
class Worker:
    """A consumer's use of what it holds: it receives, tries what is due and new, and commits what it is told."""

    clock: ManualClock = field(default_factory=ManualClock)
    next_offset: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    held_since: dict[tuple[int, int], float] = field(default_factory=dict)
    done: set[tuple[int, int]] = field(default_factory=set)
    committed: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, -1))

    def __post_init__(self) -> None:
        self.held = HeldRecords(limit=8, clock=self.clock)

    def turn(self, received: Sequence[int], is_locked: frozenset[tuple[int, int]]) -> None:
        """Receive one record of each partition in ``received``, and try them with those that are due."""
        batch = self.held.due()
        for partition in received if not self.held.is_full else ():
            batch.append(record(self.next_offset[partition], partition))
            self.next_offset[partition] += 1
        still = [each for each in batch if (each.partition, each.offset) in is_locked]
        before = set(self.held_since)
        for each in batch:
            place = (each.partition, each.offset)
            if each not in still or self.clock() - self.held_since.get(place, self.clock()) >= HOLD_FOR.total_seconds():
                self.held_since.pop(place, None)
                self.done.add(place)
            else:
                self.held_since.setdefault(place, self.clock())
        ready = self.held.settle(batch, still)
        assert len(self.held) == len(self.held_since)
        assert all(each in self.held for each in still if (each.partition, each.offset) in self.held_since)
        self.commit(ready, before)

    def commit(self, ready: Sequence[IncomingRecord], before: set[tuple[int, int]]) -> None:
        for partition, offset in offsets(ready):
            assert (partition, offset) in self.done, "what is not done is not committed"
            self.committed[partition] = max(offset, self.committed[partition])
        for partition in PARTITIONS:
            earlier = [offset for at, offset in self.held_since if at == partition]
            assert self.committed[partition] < min(earlier, default=self.next_offset[partition]), "it passed a held one"
            if not any(at == partition for at, _ in self.held_since) and any(at == partition for at, _ in before):
                assert self.committed[partition] == self.next_offset[partition] - 1, "all of it is done"

    def remembered(self) -> int:
        return sum(map(len, self.held._done.values()))


turns = st.lists(
    st.tuples(
        st.lists(st.sampled_from(PARTITIONS), max_size=12),
        st.frozensets(st.tuples(st.sampled_from(PARTITIONS), st.integers(0, 30)), max_size=10),
        st.sampled_from([0.001, 0.1, 1.0, 20.0]),
    ),
    max_size=25,
)


@bounded(300)
@given(turns)
def test_no_commit_passes_what_is_held_and_everything_is_committed_in_the_end(
    script: list[tuple[list[int], frozenset[tuple[int, int]], float]],
) -> None:
    worker = Worker()
    for received, is_locked, pause in script:
        committed = dict(worker.committed)
        worker.turn(received, is_locked)
        assert all(worker.committed[each] >= committed[each] for each in PARTITIONS), "a commit went back"
        assert worker.remembered() <= len(worker.held), "one record stands for all between two that are held"
        worker.clock.advance(pause)
    worker.clock.advance(1.0)  # the longest pause is over
    worker.turn([], frozenset())
    assert len(worker.held) == 0
    assert worker.remembered() == 0
    assert worker.committed == {each: worker.next_offset[each] - 1 for each in PARTITIONS}


@bounded(50)
@given(turns)
def test_nothing_is_held_for_longer_than_its_time_whoever_has_it_locked(
    script: list[tuple[list[int], frozenset[tuple[int, int]], float]],
) -> None:
    worker = Worker()
    locked_for_ever = frozenset((partition, offset) for partition in PARTITIONS for offset in range(400))
    for received, _, _ in script:
        worker.turn(received, locked_for_ever)
        worker.clock.advance(0.5)
    for _ in range(2):
        worker.clock.advance(HOLD_FOR.total_seconds())
        worker.turn([], locked_for_ever)
    assert len(worker.held) == 0
    assert worker.committed == {each: worker.next_offset[each] - 1 for each in PARTITIONS}


def test_what_is_behind_a_held_record_is_committed_with_it() -> None:
    held = HeldRecords(limit=8, clock=ManualClock())
    records = [record(number) for number in range(5)]

    assert offsets(held.settle(records, [records[2]])) == [(0, 1)], "the last before it"
    assert offsets(held.settle([record(5)], [])) == []
    assert max(offsets(held.settle([records[2]], []))) == (0, 5)


def test_a_held_record_of_one_partition_stops_no_other() -> None:
    held = HeldRecords(limit=8, clock=ManualClock())
    first, second = record(0, partition=0), record(0, partition=1)

    assert held.settle([first, second], [first]) == [second]


def test_a_held_record_is_tried_again_at_once_and_then_ever_less_often() -> None:
    clock = ManualClock()
    held = HeldRecords(limit=8, clock=clock)
    one = record(0)
    held.settle([one], [one])
    pauses = []
    for _ in range(12):
        assert held.due() == []
        pause = held.pause()
        assert pause is not None
        pauses.append(pause.total_seconds())
        clock.advance(pauses[-1] + 0.0001)
        assert held.due() == [one]
        assert not held.pause()
        held.settle([one], [one])

    assert pauses == sorted(pauses)
    assert pauses[0] < 0.01
    assert 0.4 < pauses[-1] <= 0.5


def test_records_are_young_for_the_moment_that_a_mark_takes() -> None:
    clock = ManualClock()
    held = HeldRecords(limit=8, clock=clock)
    one = record(0)
    assert held.is_young(one), "before its first try too"
    held.settle([one], [one])
    assert held.is_young(one)
    clock.advance(YOUNG_FOR.total_seconds())
    assert not held.is_young(one)


def test_no_more_are_received_when_the_limit_is_held() -> None:
    held = HeldRecords(limit=2, clock=ManualClock())
    records = [record(number) for number in range(2)]
    held.settle(records[:1], records[:1])
    assert not held.is_full
    held.settle(records[1:], records[1:])
    assert held.is_full


def test_what_went_to_another_worker_is_forgotten_with_all_that_waited_behind_it() -> None:
    held = HeldRecords(limit=8, clock=ManualClock())
    records = [record(number) for number in range(3)]
    others = [record(number, partition=1) for number in range(2)]
    held.settle([*records, *others], [records[0], others[0]])

    gone = held.forget({1: 7})

    assert set(offsets(gone)) == {(0, 0), (0, 2)}, "the held one, and the last of what is behind it"
    assert records[0] not in held
    assert others[0] in held
    assert held.settle([], []) == []
    assert offsets(held.settle([others[0]], [])) == [(1, 1), (1, 0)]
