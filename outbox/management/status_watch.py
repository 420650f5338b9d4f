"""``outbox_status --watch``: shows again and again until asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

from outbox.coordination.shutdown import StopFlag

_CLEAR: Final = "\x1b[H\x1b[2J"


class Output(Protocol):
    """Where to show: a command's standard output."""

    def write(self, msg: str) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


def watch(show: Callable[[], str], out: Output, stop: StopFlag, *, pause: timedelta) -> None:
    """Write what ``show`` returns, drawn anew on a terminal, until ``stop`` is set."""
    clear = _CLEAR if out.isatty() else ""
    while not stop.is_set:
        out.write(clear + show())
        out.flush()
        stop.wait(pause)
