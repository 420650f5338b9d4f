"""SIGTERM and SIGINT set a flag; the loops look at it between batches. A second signal ends the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType


class StopFlag:
    """Asked to stop, or not yet. Safe to share between threads."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def wait(self, pause: timedelta) -> bool:
        """Pause, but end early when asked to stop; say whether that was so."""
        return self._event.wait(pause.total_seconds())


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Give a flag that SIGTERM or SIGINT sets; the earlier handlers come back at the end.

    The first signal puts the earlier handlers back as well, so that a second one does what it did before.
    Use it on the main thread: Python delivers signals there only.
    """
    flag = StopFlag()
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        restore()
        flag.set()

    for number in earlier:
        signal.signal(number, stop)
    try:
        yield flag
    finally:
        restore()
