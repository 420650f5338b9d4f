"""``outbox_status --watch``: shows again and again, also while the database is away, until asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

from django.db import connections
from django.db.utils import InterfaceError, OperationalError

from outbox.shutdown import StopFlag

_CLEAR: Final = "\x1b[H\x1b[2J"


class Output(Protocol):
    """Where to show: a command's standard output."""

    def write(self, msg: str) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


def watch(
    show: Callable[[], str], say_away: Callable[[str], str], out: Output, stop: StopFlag, *, pause: timedelta
) -> None:
    """Write what ``show`` returns, drawn anew on a terminal, until ``stop`` is set.

    ``say_away`` puts it into words that the database does not answer.
    """
    clear = _CLEAR if out.isatty() else ""
    while not stop.is_set:
        try:
            text = show()
        except (OperationalError, InterfaceError) as error:
            connections.close_all()
            text = say_away(str(error))
        out.write(clear + text)
        out.flush()
        stop.wait(pause)
