"""How long to wait before the next attempt. Pure: the random number is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off: ``base`` doubles with each attempt up to ``cap``.

    ``jitter`` is the share of a delay that is random (0 none, 1 all of it), so that events that failed together do
    not come back together. ``max_attempts`` failed attempts make an event dead.

    :raises ValueError: ``base`` is not positive, ``cap`` is below it, ``max_attempts`` below 1, or ``jitter`` no share.
    """

    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=10)
    max_attempts: int = 20
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.base <= timedelta(0):
            raise ValueError(f"base must be positive, got {self.base!r}")
        if self.cap < self.base:
            raise ValueError(f"cap must not be below base, got cap={self.cap!r}, base={self.base!r}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, got {self.jitter!r}")


_MAX_DOUBLINGS = 62
"""Enough for any cap; keeps the power a small integer whatever the attempt."""


def delay(attempt: int, policy: RetryPolicy, rand: float) -> timedelta:
    """Return the pause after failed attempt number ``attempt`` (from 1), ``rand`` being in [0, 1).

    The result lies in ``[(1 - jitter) * d, d]`` with ``d = min(cap, base * 2 ** (attempt - 1))``.
    """
    if attempt < 1:
        raise ValueError(f"attempt counts from 1, got {attempt!r}")
    doublings = min(attempt - 1, _MAX_DOUBLINGS)
    full_s = min(policy.cap.total_seconds(), policy.base.total_seconds() * 2**doublings)
    return timedelta(seconds=full_s * (1 - policy.jitter * rand))
