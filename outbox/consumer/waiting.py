"""Which events a consumer has put back to wait for a predecessor, by key: who comes when, and who is woken first.

Without it every event that waits comes again and again: a key with thousands of events behind one that is late would
fill the topic with them, and keep the late one from being reached. So behind the first few they come later and later,
and when an event of the key is finished the next ones are woken: one, then twice as many each time that those were
right to come, and one again when they were not.

A hint in the memory of one process. Where it is lost, events come when they are due, in the order of their ids.
Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

_AT_ONCE: Final = 20
_APART: Final = timedelta(seconds=1)
"""So a key has about twenty events a second sent again for nothing, however many wait."""

_IN_ALL: Final = 25
"""And all keys of one consumer together about so many: a small part of what even a slow handler leaves it time for."""

WIDEST: Final = 128
"""Events of one key that are woken at one time: a part of a batch."""


@dataclass(slots=True)
class _Line:
    """The events of one key that wait, by id, and how many to wake next."""

    ids: list[int] = field(default_factory=list)
    width: int = 1


class WaitingEvents:
    """Remembers up to about ``limit`` ids; the keys that were touched first are forgotten first."""

    def __init__(self, *, limit: int = 200_000) -> None:
        self._limit = limit
        self._lines: dict[str, _Line] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        """Say whether any key is remembered: that of a woken event is, too."""
        return bool(self._lines)

    def patience_of(self, key: str, row_id: int, *, in_hand: int) -> timedelta:
        """Return how much longer ``row_id`` waits than it would if it were the only one.

        ``in_hand`` events of the key that wait before it are not noted yet.
        """
        line = self._lines.get(key)
        own = [] if line is None else line.ids
        ahead = max(in_hand, bisect_left(own, row_id))
        return _APART * (ahead // _AT_ONCE + (self._count - len(own)) // _IN_ALL)

    def next_of(self, key: str, *, besides: Collection[int] = ()) -> list[int]:
        """Return whom to wake when an event of ``key`` is finished, leaving out those in hand."""
        line = self._lines.get(key)
        if line is None:
            return []
        found: list[int] = []
        for row_id in line.ids:
            if len(found) == line.width:
                break
            if row_id not in besides:
                found.append(row_id)
        return found

    def put_back(self, key: str, ids: Iterable[int]) -> None:
        """Note that ``ids`` wait: who was woken last came too early."""
        line = self._lines.pop(key, None) or _Line()
        self._lines[key] = line
        line.width = 1
        for row_id in ids:
            at = bisect_left(line.ids, row_id)
            if at == len(line.ids) or line.ids[at] != row_id:
                insort(line.ids, row_id)
                self._count += 1
        while self._count > self._limit and len(self._lines) > 1:
            self._count -= len(self._lines.pop(next(iter(self._lines))).ids)

    def finished(self, key: str, *, gone: Sequence[int], woken: Sequence[int]) -> None:
        """Note that ``gone`` took effect or died, which is how it should be, and that ``woken`` are due now."""
        line = self._lines.get(key)
        if line is None:
            return
        for row_id in (*gone, *woken):
            at = bisect_left(line.ids, row_id)
            if at < len(line.ids) and line.ids[at] == row_id:
                del line.ids[at]
                self._count -= 1
        line.width = min(2 * line.width, WIDEST)
        if not line.ids and not woken:
            del self._lines[key]
