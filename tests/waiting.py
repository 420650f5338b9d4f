"""Waiting for a condition with a deadline: the only way in which a test may wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(AssertionError):
    """What was waited for did not come true in time."""


def wait_until(
    condition: Callable[[], T],
    *,
    timeout: float | timedelta = 10.0,
    interval: float = 0.02,
    message: str = "",
) -> T:
    """Return the first true value of ``condition``; fail when there is none within ``timeout`` seconds."""
    timeout_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise DeadlineError(f"{message or condition} did not come true within {timeout_s:g} s, last: {value!r}")
        time.sleep(interval)
