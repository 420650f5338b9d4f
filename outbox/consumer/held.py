"""The records that a consumer keeps uncommitted for a while: somebody else has locked their rows.

Their offsets, and so all behind them in their partitions, are not committed until they came to an end. What takes too
long is let go: its row is ``published``, and the relay sends it again in its time. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from outbox.brokers.base import IncomingRecord

HOLD_FOR: Final = timedelta(seconds=30)
YOUNG_FOR: Final = timedelta(milliseconds=250)
"""A relay that marks its rows has them locked for a few milliseconds."""

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.5

_Place = tuple[str, int, int]


@dataclass(slots=True)
class _Held:
    record: IncomingRecord
    since: float
    pause_s: float
    try_at: float


class HeldRecords:
    """What one consumer holds, at most ``limit`` records; ``clock`` gives monotonic seconds."""

    def __init__(self, *, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._held: dict[_Place, _Held] = {}
        self._done: dict[int, list[IncomingRecord]] = {}
        """By partition, in the order of offsets: done, and behind a held one."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, record: IncomingRecord) -> bool:
        return record.place in self._held

    @property
    def is_full(self) -> bool:
        return len(self._held) >= self._limit

    def is_young(self, record: IncomingRecord) -> bool:
        """Say whether a record has been held for moments only, or not yet."""
        held = self._held.get(record.place)
        return held is None or self._clock() - held.since < YOUNG_FOR.total_seconds()

    def due(self) -> list[IncomingRecord]:
        """Return what is to be tried again now."""
        now = self._clock()
        return [held.record for held in self._held.values() if held.try_at <= now]

    def pause(self) -> timedelta | None:
        """Return how long until something is to be tried again; None: nothing is held."""
        if not self._held:
            return None
        next_at = min(held.try_at for held in self._held.values())
        return timedelta(seconds=max(0.0, next_at - self._clock()))

    def settle(self, tried: Sequence[IncomingRecord], still: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        """Note what became of ``tried``, of which ``still`` came to no end; return what may be committed now.

        What has been held for too long is let go, and is among what may be committed.
        """
        if not (still or self._held or self._done):
            return list(tried)
        now = self._clock()
        kept = {record.place for record in still}
        for record in tried:
            place = record.place
            if place in kept:
                self._keep(record, now)
            else:
                self._held.pop(place, None)
                self._done.setdefault(record.partition, []).append(record)
        return self._committable()

    def forget(self, assignments: Mapping[int, int]) -> list[IncomingRecord]:
        """Drop what is of partitions that went to others; return the records that will not be finished here."""
        gone = [held.record for held in self._held.values() if held.record.partition not in assignments]
        for record in gone:
            del self._held[record.place]
        for partition in [each for each in self._done if each not in assignments]:
            gone += self._done.pop(partition)
        return gone

    def _keep(self, record: IncomingRecord, now: float) -> None:
        held = self._held.get(record.place)
        if held is None:
            self._held[record.place] = _Held(record, now, _FIRST_PAUSE_S, now + _FIRST_PAUSE_S)
        elif now - held.since >= HOLD_FOR.total_seconds():
            del self._held[record.place]
            self._done.setdefault(record.partition, []).append(record)
        else:
            held.pause_s = min(held.pause_s * 2, _LONGEST_PAUSE_S)
            held.try_at = now + held.pause_s

    def _committable(self) -> list[IncomingRecord]:
        held_offsets: dict[int, list[int]] = {}
        for held in self._held.values():
            insort(held_offsets.setdefault(held.record.partition, []), held.record.offset)
        ready: list[IncomingRecord] = []
        for partition, records in list(self._done.items()):
            offsets = held_offsets.get(partition)
            if offsets is None:
                ready += self._done.pop(partition)
                continue
            # A commit is of everything before it: of those between two held ones the last stands for all.
            last_before: dict[int, IncomingRecord] = {}
            for record in sorted(records, key=lambda each: each.offset):
                last_before[bisect_left(offsets, record.offset)] = record
            if 0 in last_before:
                ready.append(last_before.pop(0))
            self._done[partition] = list(last_before.values())
        return ready
