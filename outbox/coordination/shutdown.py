"""SIGTERM and SIGINT set a flag; the loops look at it between batches. A second signal ends the process at once."""

from __future__ import annotations

import selectors
import signal
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Protocol


class HasFileno(Protocol):
    """What a selector can wait for."""

    def fileno(self) -> int: ...


class StopFlag:
    """Asked to stop, or not yet. Safe to share between threads, and with a signal handler.

    Not a ``threading.Event``: its lock is held for moments of a wait, and a handler that sets it on the thread that
    waits would wait for that lock for ever. A byte in a socket takes no lock, stays there for everybody who waits, and
    can be waited for together with other sockets.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        weakref.finalize(self, _close, self._reader, self._writer)

    @property
    def is_set(self) -> bool:
        """Say whether it was asked to stop."""
        return self._is_set

    def set(self) -> None:
        """Ask to stop; every wait ends."""
        self._is_set = True
        with suppress(BlockingIOError):  # full of earlier ones
            self._writer.send(b"\0")

    def wait(self, pause: timedelta, *, until: HasFileno | None = None) -> bool:
        """Pause, but end early when asked to stop, or when ``until`` can be read; say whether asked to stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            if until is not None:
                selector.register(until, selectors.EVENT_READ)
            selector.select(max(pause.total_seconds(), 0.0))
        return self._is_set


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


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
