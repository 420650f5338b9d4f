"""Waiting for what a worker depends on: growing pauses, logged at first, ever more rarely, and when it is over."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox import signals
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.declarations.backoff import RetryPolicy, delay
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError
from outbox.log_text import get_logger

logger = get_logger(__name__)

PAUSES: Final = RetryPolicy(base=timedelta(milliseconds=200), cap=timedelta(seconds=5), max_attempts=2**31, jitter=0.5)
"""The cap is short: a worker should be back within seconds of the broker or the database."""


def is_fault(error: Exception, using: str) -> bool:
    """Say whether ``error`` is a worker's own, a missing table or a bug, and nothing that comes back by itself."""
    is_of_broker = isinstance(error, (BrokerUnavailableError, LostSubscriptionError))
    return not is_of_broker and _kind_of(error, using) is ErrorKind.PERMANENT


class ConnectionBackoff:
    """Counts failures in a row of one worker: of what it depends on, or of its own.

    Log lines come at 1, 2, 4, 8, … failures in a row of each that it depends on: a night without a database does not
    fill the disk. Each has a line of its own when it is over, whatever failed last: a broker that comes back may drop a
    subscription before it serves. ``rand``, from 0 to 1, is the random part of the pauses (200 ms to 5 s).
    """

    def __init__(self, service: str, worker: str, *, rand: float = 0.5) -> None:
        self._service, self._worker, self._rand = service, worker, rand
        self._failures: dict[str, int] = {}
        """In a row, by what failed, in the order in which each did so first."""
        self._traced: set[tuple[type, object]] = set()

    def record(self, error: Exception, *, using: str) -> timedelta:
        """Count ``error`` as what it is; return how long to pause.

        Unless it is the broker's, the connection to ``using`` is closed: in what state it is nobody knows.
        """
        if isinstance(error, BrokerUnavailableError):
            return self.record_failure("broker", error)
        if isinstance(error, LostSubscriptionError):
            return self.record_failure("subscription", error)
        kind = _kind_of(error, using)
        connections[using].close()
        if kind is ErrorKind.PERMANENT:
            return self.record_fault(error, using=using)
        return self.record_failure("database", error, kind=kind)

    def record_failure(self, what: str, error: BaseException, *, kind: ErrorKind = ErrorKind.UNAVAILABLE) -> timedelta:
        """Count one more failure of ``what``, which costs no event an attempt; return how long to pause."""
        pause = self._count(what, error)
        if self._is_logged(what):
            state = "busy" if kind is ErrorKind.CONFLICT else "unavailable"
            logger.warning(
                "%s %s, retrying: service=%s worker=%s failures=%d pause_seconds=%.1f error=%s",
                what,
                state,
                self._service,
                self._worker,
                self._failures[what],
                pause.total_seconds(),
                error,
            )
        return pause

    def record_fault(self, error: Exception, *, using: str) -> timedelta:
        """Count one more failure of the worker itself, its traceback once for each kind; return how long to pause.

        Other services in the process go on. ``using`` is the worker's database.
        """
        pause = self._count(self._worker, error)
        kind = (type(error), error.args[0] if error.args and isinstance(error.args[0], int) else None)
        if self._is_logged(self._worker) or kind not in self._traced:
            hint = (
                f" (the database refused a statement: are its tables up to date? See `manage.py migrate --database "
                f"{using}` and `manage.py check --database {using}`)"
                if isinstance(error, DatabaseError)
                else ""
            )
            logger.error(
                "%s failed, retrying: service=%s failures=%d pause_seconds=%.1f error=%s: %s%s",
                self._worker,
                self._service,
                self._failures[self._worker],
                pause.total_seconds(),
                type(error).__name__,
                error,
                hint,
                exc_info=error if kind not in self._traced else None,
            )
            self._traced.add(kind)
        return pause

    def record_success(self, *, besides: Collection[str] = ()) -> None:
        """Note that work goes on; ``besides`` names what has not shown yet that it is back."""
        over = {what: failures for what, failures in self._failures.items() if what not in besides}
        self._failures = {what: failures for what, failures in self._failures.items() if what in besides}
        for what, failures in over.items():
            logger.warning(
                "%s recovered: service=%s worker=%s failures=%d", what, self._service, self._worker, failures
            )
            signals.recovered.send_robust(self._service, what=what)

    def _is_logged(self, what: str) -> bool:
        failures = self._failures[what]
        return failures & (failures - 1) == 0

    def _count(self, what: str, error: BaseException) -> timedelta:
        self._failures[what] = self._failures.get(what, 0) + 1
        pause = delay(sum(self._failures.values()), PAUSES, self._rand)
        signals.outage.send_robust(self._service, what=what, error=str(error), pause_seconds=pause.total_seconds())
        return pause


def _kind_of(error: Exception, using: str) -> ErrorKind:
    return kind_of(error, using) if isinstance(error, (DatabaseError, InterfaceError)) else ErrorKind.PERMANENT
