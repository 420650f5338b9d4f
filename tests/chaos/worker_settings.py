"""Settings of workers whose wall clock libfaketime tells: those of the acceptance tests, and a sleep that works."""

from __future__ import annotations

import select
import time
from typing import SupportsIndex

from tests.acceptance.settings import *  # noqa: F403


def _sleep(seconds: float | SupportsIndex) -> None:
    select.select((), (), (), float(seconds))


# Python sleeps until a moment of the monotonic clock; libfaketime 0.9.10 moves that moment into the past although it
# leaves the clock alone, and the sleep ends in EINVAL.
time.sleep = _sleep
