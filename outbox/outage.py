"""Waiting out an outage: growing pauses, said once when it begins, now and then while it lasts, and when it is over."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from outbox import signals
from outbox.backoff import RetryPolicy, delay

logger = logging.getLogger(__name__)

PAUSES: Final = RetryPolicy(base=timedelta(milliseconds=200), cap=timedelta(seconds=5), max_attempts=2**31, jitter=0.5)
"""The cap is short: a worker should be back within seconds of the broker or the database."""


class OutageWatch:
    """Counts failures in a row of what one worker depends on."""

    def __init__(self, service: str, worker: str, *, rand: float = 0.5) -> None:
        self._service, self._worker, self._rand = service, worker, rand
        self._what = ""
        self._failures = 0

    def failed(self, what: str, error: BaseException, *, state: str = "away") -> timedelta:
        """Note one more failure of ``what``, which is ``state``, and return how long to pause."""
        self._what = what
        self._failures += 1
        pause = delay(self._failures, PAUSES, self._rand)
        # Said at 1, 2, 4, 8, … failures: an outage of a night does not fill the disk.
        if self._failures & (self._failures - 1) == 0:
            logger.warning(
                "%s of %s: the %s is %s; waiting %.1f s, no event loses an attempt: %s",
                self._worker,
                self._service,
                what,
                state,
                pause.total_seconds(),
                error,
            )
        signals.outage.send_robust(self._service, what=what, error=str(error), pause_seconds=pause.total_seconds())
        return pause

    def over(self) -> None:
        """Note that work goes on."""
        if self._failures:
            logger.warning("%s of %s: the %s is back", self._worker, self._service, self._what)
            signals.recovered.send_robust(self._service, what=self._what)
            self._failures = 0
