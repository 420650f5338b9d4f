"""When a worker's loop last moved. A process that lives need not be one that works."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class Progress:
    """Noted by a worker's loop, asked by its heartbeat on another thread. ``clock`` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moved_at = clock()

    def moved(self) -> None:
        """Note that the loop goes on."""
        self._moved_at = self._clock()

    @property
    def age(self) -> timedelta:
        """How long ago that was."""
        return timedelta(seconds=self._clock() - self._moved_at)
