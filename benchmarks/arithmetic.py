"""What is computed from samples: percentiles and speeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


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


def middle(steps: Sequence[Step], share: float = 0.1) -> Sequence[Step]:
    """Return the steps without the first and the last ``share`` of the events.

    Several processes do not begin at one moment, and one of them is the last. Too few steps are returned whole.
    """
    total = sum(count for _, count in steps)
    begin = len(head(steps, math.ceil(total * share))) - 1
    end = len(head(steps, math.ceil(total * (1 - share))))
    inner = steps[begin:end]
    return inner if len(inner) > 2 else steps
