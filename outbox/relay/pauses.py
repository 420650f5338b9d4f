"""How a relay rests while nothing is due: for growing pauses, which a wake-up ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import WakeUpSocket


class IdlePauses:
    """The pauses of one relay, each twice as long as the one before, from ``shortest`` to ``longest``.

    ``open_wake_ups`` opens what ends a pause early; None: there is nothing such.
    """

    def __init__(
        self, *, shortest: timedelta, longest: timedelta, open_wake_ups: Callable[[], WakeUpSocket | None]
    ) -> None:
        self._shortest, self._longest = shortest, longest
        self._next = shortest
        self._open_wake_ups = open_wake_ups
        self._wake_ups: WakeUpSocket | None = None
        self._was_woken = False

    @property
    def are_ended_by_wake_ups(self) -> bool:
        return self._wake_ups is not None

    def open(self) -> None:
        """Begin to listen for wake-ups."""
        self._wake_ups = self._open_wake_ups()

    def close(self) -> None:
        """Listen no more."""
        if self._wake_ups is not None:
            self._wake_ups.close()

    def after(self, worked: bool) -> timedelta:
        """Return how long to rest after a step; after one that worked not at all, and the next is the shortest."""
        if worked:
            self._next = self._shortest
            self._was_woken = False
            if self._wake_ups is not None:
                # What it tells of is committed: the next step, which follows at once, finds it, or this one has. Left
                # there, it would be a wake-up that leads to nothing, and the next one would not be listened to.
                self._wake_ups.clear()
            return timedelta(0)
        pause = self._next
        self._next = min(pause * 2, self._longest)
        return pause

    def rest(self, length: timedelta, stop: StopFlag) -> None:
        """Rest; a wake-up ends it.

        Wake-ups are for all relays of the service: after one that led to nothing, the next is not listened to for the
        shortest pause, so that what others publish costs this one no more than its polling does.
        """
        if self._wake_ups is None:
            stop.wait(length)
            return
        if self._was_woken:
            deaf = min(self._shortest, length)
            stop.wait(deaf)
            length -= deaf
        stop.wait(length, until=self._wake_ups)
        self._was_woken = self._wake_ups.clear()
