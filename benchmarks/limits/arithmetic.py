"""Whether a process stays as large as it is, computed from samples of its size. Pure."""

from __future__ import annotations

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
