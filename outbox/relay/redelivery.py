"""How long a row stays published before it is sent again. Pure.

The first time it is ``REDELIVER_AFTER_SECONDS``. A row that was sent again and is not consumed waits twice as long as
before: what takes its records, another installation in its consumer group say, takes them again.
"""

from __future__ import annotations

from datetime import timedelta
from math import log2
from typing import Final

LONGEST_PAUSE: Final = timedelta(hours=1)


def pause_before_redelivery(waited: timedelta | None, *, first: timedelta) -> timedelta:
    """Return for how long a row that is sent now may stay published.

    ``waited`` is how long it stayed published before it was sent again, None for one that is not. Pauses are ``first``
    times a power of two, so that rows of one batch share a few. None is above ``LONGEST_PAUSE``, or ``first`` if that
    is longer.
    """
    if waited is None or waited <= timedelta(0):
        return first
    longest = max(LONGEST_PAUSE, first)
    if waited >= longest:
        return longest
    doublings: int = max(1, round(log2(waited / first)) + 1)
    return min(timedelta(seconds=first.total_seconds() * 2**doublings), longest)
