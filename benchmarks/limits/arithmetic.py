"""What is computed from samples: percentiles, whether a process stays as large as it is, speeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

PARTS: Final = 5
"""A run is looked at in fifths; the first is the warm-up."""

GROWTH_SHARE: Final = 0.05
GROWTH_FLOOR_KIB: Final = 4096.0
"""A process may grow by five per cent after its warm-up, or by 4 MiB where that is more.

An allocator takes memory in arenas and gives none back, and a batch that is larger than any before it takes some more:
that is worth single MiB, once. A leak goes on: one of 16 bytes an event has taken 15 MiB after a million events, which
a run at full load has in some minutes.
"""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values, no percentile")
    in_order = sorted(values)
    return in_order[max(math.ceil(share * len(in_order)), 1) - 1]


def usual_percentile(values: Sequence[tuple[float, float]], share: float, *, window: float) -> float:
    """Return the median of the percentiles of each ``window`` of time; ``values`` are (moment, value).

    One bad moment, which may have come from elsewhere, does not change it. A window that the run only began is left
    out, unless there is no other.
    """
    if not values:
        raise ValueError("no values, no percentile")
    first, last = min(at for at, _ in values), max(at for at, _ in values)
    whole = max(int((last - first) / window), 1)
    windows: dict[int, list[float]] = {}
    for at, value in values:
        windows.setdefault(min(int((at - first) / window), whole), []).append(value)
    return median(percentile(of_window, share) for number, of_window in windows.items() if number < whole)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return by how much y grows for each x, by least squares; 0 where x does not change."""
    if not xs:
        return 0.0
    middle_x, middle_y = fmean(xs), fmean(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    if not spread:
        return 0.0
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread


def part(values: Sequence[float], number: int) -> Sequence[float]:
    """Return the part ``number`` (from 0) of ``PARTS`` equal parts; never empty when there are as many values."""
    return values[len(values) * number // PARTS : len(values) * (number + 1) // PARTS]


@dataclass(frozen=True, slots=True)
class Flatness:
    """How a size went over a run."""

    start: float
    warm: float
    """Median of the second fifth."""
    end: float
    """Median of the last fifth."""
    peak: float
    slope: float
    """Growth for each unit of work, by a fit over all but the first fifth."""
    fitted: float
    """What that slope amounts to from the end of the warm-up to the end of the run."""
    limit: float
    """What it may grow by."""

    @property
    def growth(self) -> float:
        return self.end - self.warm

    @property
    def held(self) -> bool:
        """Say whether both the medians and the fit stay within the limit: steps and steady climbs are both seen."""
        return self.growth <= self.limit and self.fitted <= self.limit


def flatness(work: Sequence[float], sizes: Sequence[float], *, share: float, floor: float) -> Flatness:
    """Return how ``sizes`` went over ``work`` done; it may grow by ``share`` of its warm size or by ``floor``.

    :raises ValueError: too few samples to tell.
    """
    if len(sizes) < 2 * PARTS:
        raise ValueError(f"{len(sizes)} samples are too few; {2 * PARTS} are the least")
    after = len(sizes) // PARTS
    steepness = slope(work[after:], sizes[after:])
    warm = median(part(sizes, 1))
    return Flatness(
        start=sizes[0],
        warm=warm,
        end=median(part(sizes, PARTS - 1)),
        peak=max(sizes),
        slope=steepness,
        fitted=steepness * (work[-1] - work[after]),
        limit=max(share * warm, floor),
    )


Step = tuple[float, int]
"""A moment in seconds, and how many events were marked at it."""


def speed(steps: Sequence[Step]) -> float:
    """Return events a second from the first step to the last; the first only says when the time begins."""
    if len(steps) < 2 or steps[-1][0] <= steps[0][0]:
        raise ValueError("a speed needs two steps at different moments")
    return sum(count for _, count in steps[1:]) / (steps[-1][0] - steps[0][0])


def head(steps: Sequence[Step], events: int) -> Sequence[Step]:
    """Return the steps of the first ``events`` events; the step that reaches the number belongs to them."""
    done = 0
    for number, (_, count) in enumerate(steps):
        done += count
        if done >= events:
            return steps[: number + 1]
    return steps


def tenths(steps: Sequence[Step]) -> list[float]:
    """Return the speed over each tenth of the events; a tenth's time begins with the last step of the one before."""
    total = sum(count for _, count in steps)
    bounds = [len(head(steps, math.ceil(total * number / 10))) for number in range(1, 11)]
    return [speed(steps[max(first - 1, 0) : last]) for first, last in zip([0, *bounds], bounds, strict=False)]
