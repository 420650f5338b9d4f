"""SIGTERM and SIGINT set a flag; the loops look at it between batches. A second signal ends the process at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import FrameType


class StopFlag:
    """Asked to stop, or not yet. Safe to share between threads, and with a signal handler.

    Not a ``threading.Event``: its lock is held for moments of a wait, and a handler that sets it on the thread that
    waits would wait for that lock for ever. Putting into a ``SimpleQueue`` is reentrant, as its documentation promises.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._woken: SimpleQueue[None] = SimpleQueue()

    @property
    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._woken.put(None)

    def wait(self, pause: timedelta) -> bool:
        """Pause, but end early when asked to stop; say whether that was so."""
        try:
            self._woken.get(timeout=max(pause.total_seconds(), 0.0))
        except Empty:
            return self._is_set
        self._woken.put(None)  # for the next one who waits
        return True


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
