"""Settles an event that failed alone, in a transaction of its own: retried, dead, interrupted, or deferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from time import monotonic
from typing import Final

from outbox.consumer.blame import failure_of
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.consumer.report import News
from outbox.coordination.heartbeat import Witness
from outbox.declarations.backoff import RetryPolicy, delay
from outbox.exceptions import Discard, HandlerTimeoutError, Retry, SilentDatabaseError, TooManyInterruptionsError
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rows import Locked
from outbox.storage.sessions import own_transaction

_LONGEST_PAUSE: Final = timedelta(days=3650)
"""Whatever a handler asks for, the moment must be one that a database can hold."""

_FREE_DEFERRALS: Final = 25
"""So often in a row an event may find locks of others in its way before it pays: about ten minutes."""

_LONGEST_DEFERRAL_S: Final = 30

_REMEMBERED: Final = 10_000


class ContendedEvents:
    """The events that found locks of others in their way, and how often in a row. A hint in one process's memory."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._counts

    def __bool__(self) -> bool:
        return bool(self._counts)

    def note(self, row_id: int) -> int:
        """Count one more time; return how often it was."""
        count = self._counts.pop(row_id, 0) + 1
        self._counts[row_id] = count
        while len(self._counts) > _REMEMBERED:
            del self._counts[next(iter(self._counts))]
        return count

    def forget(self, row_ids: Iterable[int]) -> None:
        for row_id in row_ids:
            self._counts.pop(row_id, None)


class Charges:
    """What one service's consumer writes of events that stood alone; each in a transaction of its own."""

    def __init__(
        self,
        repository: ConsumerRows,
        *,
        news: News,
        retry_policy: Callable[[str], RetryPolicy],
        parks_key: Callable[[str], bool],
        rand: Callable[[], float],
        wake_relays: Callable[[], None],
        witness: Witness,
    ) -> None:
        self.contended = ContendedEvents()
        self._repository = repository
        self._using = repository.route.database
        self._news = news
        self._retry_policy = retry_policy
        self._parks_key = parks_key
        self._rand = rand
        self._wake_relays = wake_relays
        self._witness = witness

    def failed(self, row: Locked, error: Exception, *, is_counted: bool = False) -> None:
        """Charge an event whose handler failed; where the database's silence made it late, that is an interruption.

        No server is silent so often in a row, but for a handler that makes it so. ``is_counted``: it counts already.

        :raises DatabaseError: the database is unavailable.
        """
        silence = self._silence_behind(error)
        if silence is None:
            self.charge(row, error)
        elif not is_counted:
            self.interrupted(row, silence)

    def hangs(self, row: Locked, *, limit: timedelta) -> bool:
        """Charge an event whose handler does not return; say whether that is its fault, and not the database's silence.

        :raises DatabaseError: the database is unavailable.
        """
        late = HandlerTimeoutError(row.event_type, limit=limit, began=monotonic() - limit.total_seconds())
        if self._silence_behind(late) is not None:
            return False  # the next consumer of the partition does this event alone
        self.charge(row, late)
        return True

    def charge(self, row: Locked, error: Exception) -> None:
        """Have one event come again, or make it dead: its handler failed.

        :raises DatabaseError: the database is unavailable.
        """
        attempt = row.retry_count + 1
        if isinstance(error, Discard) or attempt >= row.max_retry:
            self._bury(row, error)
            return
        failure = failure_of(error)
        pause = error.after if isinstance(error, Retry) else None
        if pause is None:
            pause = delay(attempt, self._retry_policy(row.event_type), self._rand())
        pause = min(pause, _LONGEST_PAUSE)
        with own_transaction(self._using):
            noted = self._repository.retry(row, due_at=self._repository.now() + pause, failure=failure)
        if noted:  # else somebody else moved it meanwhile, or it failed behind its commit
            self._news.tell_retried(row, pause, error=error, reason=failure.reason)

    def interrupted(self, row: Locked, error: Exception) -> None:
        """Count an interruption of an event whose connection was lost, or make it dead after too many in a row.

        :raises DatabaseError: the database is unavailable.
        """
        count = row.interruptions + 1
        if count >= MAX_INTERRUPTIONS:
            self._bury(row, _because(TooManyInterruptionsError(count), error), failed_attempts=0)
            return
        pause = self.back_off(row)
        with own_transaction(self._using):
            due_at = self._repository.now() + pause
            noted = self._repository.interrupt(row, due_at=due_at, failure=failure_of(error, with_traceback=False))
        if noted:
            self._news.tell_interrupted(row, count, pause, error)

    def back_off(self, row: Locked) -> timedelta:
        """Return the pause of an event that is interrupted once more."""
        return delay(row.interruptions + 1, self._retry_policy(row.event_type), self._rand())

    def defer(self, row: Locked, error: Exception) -> int:
        """Put off an event that locks of others are in the way of; return how many were.

        It costs no attempt until it has happened often in a row: then it is how its handler works.

        :raises DatabaseError: the database is unavailable.
        """
        count = self.contended.note(row.id)
        if count > _FREE_DEFERRALS:
            self.charge(row, error)
            return 0
        pause = timedelta(seconds=min(2 ** (count - 1), _LONGEST_DEFERRAL_S) + self._rand())
        with own_transaction(self._using):
            return self._repository.wait([row.id], until=self._repository.now() + pause)

    def _silence_behind(self, error: Exception) -> SilentDatabaseError | None:
        """Return what made a handler late that would have been in time, had the database answered at once."""
        if not isinstance(error, HandlerTimeoutError):
            return None
        silent_s = self._witness.silent_s(error.began)
        return SilentDatabaseError(error, silent_s=silent_s) if silent_s > error.over_s else None

    def _bury(self, row: Locked, error: Exception, *, failed_attempts: int = 1) -> None:
        failure = failure_of(error)
        parks_key = self._parks_key(row.event_type)
        released = 0
        with own_transaction(self._using):
            buried = self._repository.bury_failed(
                row, failure=failure, parks_key=parks_key, failed_attempts=failed_attempts
            )
            if buried and not parks_key:
                released = self._repository.release({row.message_key: row.id})
        if released:
            self._wake_relays()
        if buried:
            self._news.tell_dead(row, failure.reason)


def _because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error
