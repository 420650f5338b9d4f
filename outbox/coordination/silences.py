"""When a database did not answer: what the beats of a heartbeat tell, also where no connection was lost."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

_SILENT_S: Final = 1.0
"""An answer that took longer ends a silence: a busy server is slow, too, and not silent."""

_REMEMBERED: Final = 256


class _Silence(NamedTuple):
    began: float
    ended: float
    share: float
    """Of its time this process ran for none; a handler that keeps the interpreter's lock silences nobody but itself."""

    def within(self, since: float) -> float:
        return max(0.0, self.ended - max(self.began, since)) * self.share


class Silences:
    """Keeps the last silences of a database; each is counted from the answer before it, as it began after that.

    One thread asks and is answered at a time. ``clock`` gives monotonic seconds, ``ran`` the seconds for which this
    process was at work.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, ran: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._ran = clock, ran
        self._mutex = threading.Lock()
        self._kept: deque[_Silence] = deque(maxlen=_REMEMBERED)
        self._answered = clock(), ran()
        self._asked_at: float | None = None

    def asked(self) -> None:
        """Note that an answer is waited for; where the connection was lost instead, the next question is the same."""
        with self._mutex:
            if self._asked_at is None:
                self._asked_at = self._clock()

    def answered(self, *, was_locked: bool = False) -> None:
        """Note an answer to what was asked. ``was_locked``: it took its time because of the lock of another session."""
        with self._mutex:
            silence = None if was_locked else self._going_on()
            if silence is not None:
                self._kept.append(silence)
            self._answered = self._clock(), self._ran()
            self._asked_at = None

    def seconds(self, since: float) -> float:
        """Return for how long of the time from ``since``, by the clock, until now the database was silent."""
        with self._mutex:
            going_on = self._going_on()
            return sum(each.within(since) for each in (*self._kept, going_on) if each is not None)

    def _going_on(self) -> _Silence | None:
        asked_at, now, (began, ran) = self._asked_at, self._clock(), self._answered
        if asked_at is None or now - asked_at <= _SILENT_S:
            return None
        return _Silence(began, now, max(0.0, 1.0 - (self._ran() - ran) / (now - began)))
