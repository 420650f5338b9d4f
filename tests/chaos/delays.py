"""How long the events of other keys waited while one row was locked or one worker stood still. Pure.

Moments are seconds since 1970.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.ledger import Hold
from tests.chaos.standstill import Span, Stretch, between

LIMIT_S: Final = 5.0
"""What the promise says."""

TAKE_OVER_S: Final = 10.0
"""For so long the partitions of a worker that stands still may wait for another one beside."""

BACKLOG: Final = 20
"""With more before it in its partition, an event waits for those and not for the hold."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One event that is in nobody's way, from its publication to its effect."""

    event_id: str
    key: str
    partition: int
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Delay:
    """An event that waited for too long during a hold."""

    wait: Wait
    hold: Hold
    stretch: Stretch
    limit_s: float


@dataclass(slots=True)
class Delays:
    """All of a run."""

    measured: int = 0
    """Events that were published during a hold and came in time, or much too late."""
    undisturbed: int = 0
    """Those of them during whose wait nothing else could have been in the way."""
    longest_s: float = 0.0
    """Of the undisturbed."""
    excused: int = 0
    too_long: list[Delay] = field(default_factory=list)

    def add(self, other: Delays) -> None:
        """Take in what others have measured."""
        self.measured += other.measured
        self.undisturbed += other.undisturbed
        self.longest_s = max(self.longest_s, other.longest_s)
        self.excused += other.excused
        self.too_long += other.too_long


def measure(
    waits: Sequence[Wait],
    holds: Iterable[Hold],
    spans: Collection[Span],
    *,
    held_by: Callable[[Hold], Collection[int]],
    waited_s: Callable[[float, float], float],
) -> Delays:
    """Hold each event against each hold in which it was published.

    ``held_by`` gives the partitions of the worker that stood still, ``spans`` what else was in the way, ``waited_s``
    for how much of a time the machine or handlers kept everybody waiting.
    """
    found = Delays()
    crowded = _crowded(waits)
    merged = _merged(spans)
    for hold in holds:
        slow_parts = held_by(hold) if hold.frozen_pid is not None else ()
        for wait in waits:
            if wait.key in hold.keys or not hold.began_at <= wait.began_at < hold.ended_at:
                continue
            limit_s = LIMIT_S + (TAKE_OVER_S if wait.partition in slow_parts else 0.0)
            took_s = wait.ended_at - wait.began_at
            is_disturbed = wait.event_id in crowded or _overlaps(
                merged, wait.began_at, min(wait.ended_at, hold.ended_at)
            )
            if took_s <= limit_s:
                found.measured += 1
                if not is_disturbed:
                    found.undisturbed += 1
                    found.longest_s = max(found.longest_s, took_s)
                continue
            stretch = _worst(wait, hold, spans, waited_s)
            if wait.event_id not in crowded and stretch.blamed_s > limit_s:
                found.measured += 1
                found.too_long.append(Delay(wait, hold, stretch, limit_s))
            else:
                found.excused += 1
    return found


def _worst(wait: Wait, hold: Hold, spans: Collection[Span], waited_s: Callable[[float, float], float]) -> Stretch:
    """Return the time within the hold in which nothing else was in the way, and for which it is to blame most."""
    began_at, ended_at = wait.began_at, min(wait.ended_at, hold.ended_at)
    near = [span for span in spans if span.began_at < ended_at and span.ended_at > began_at]
    stretches = [Stretch(start, end, waited_s(start, end)) for start, end in between(began_at, ended_at, near)]
    return max(stretches, key=lambda stretch: stretch.blamed_s, default=Stretch(began_at, began_at, 0.0))


def _crowded(waits: Sequence[Wait]) -> frozenset[str]:
    """Return the events that had a backlog before them."""
    ends: dict[int, list[float]] = {}
    crowded = set()
    for wait in sorted(waits, key=lambda wait: wait.began_at):
        open_ends = ends.setdefault(wait.partition, [])
        del open_ends[: bisect_right(open_ends, wait.began_at)]
        if len(open_ends) > BACKLOG:
            crowded.add(wait.event_id)
        insort(open_ends, wait.ended_at)
    return frozenset(crowded)


def _merged(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """Return when something was in the way, in order and without overlaps."""
    merged: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda span: span.began_at):
        if merged and span.began_at <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.ended_at))
        else:
            merged.append((span.began_at, span.ended_at))
    return merged


def _overlaps(merged: Sequence[tuple[float, float]], began_at: float, ended_at: float) -> bool:
    at = bisect_left(merged, (ended_at,))
    return at > 0 and merged[at - 1][1] > began_at


def by_hold(delays: Iterable[Delay]) -> Iterator[tuple[Hold, list[Delay]]]:
    """Return the holds that held up others, each with the events that waited."""
    found: dict[Hold, list[Delay]] = {}
    for delay in delays:
        found.setdefault(delay.hold, []).append(delay)
    yield from found.items()
