"""Whose failure it is, and whose effects are in the transaction.

Four rules:

* Only the call of a handler can charge an event. What fails elsewhere is done again, event by event.
* That a handler returned does not say that its effects are in the transaction. After each call Django's account of the
  transaction is looked at, and before the mark a savepoint that was made before the first call is released: it is
  there in that transaction only in which the handlers wrote.
* A connection that is lost says nothing about the event. It was the server's when a witness, another connection to the
  same database, was lost too; else it is an interruption, and counted apart from attempts.
* Any orderly end of an event sets its interruptions back to 0; ``MAX_INTERRUPTIONS`` in a row make it dead.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from django.db import connections, transaction
from django.db.utils import DatabaseError, InterfaceError

from outbox.database_errors import ErrorKind, classify, is_lock_wait, kind_of
from outbox.exceptions import (
    ClosedConnectionError,
    FailedDeliveries,
    HandlerExitError,
    HandlerTimeoutError,
    UndoneEffectsError,
    UnfinishedCallError,
)
from outbox.handlers import Delivery, Handler
from outbox.hooks import guard_hooks
from outbox.planning import Readable, group
from outbox.statements import StatementWatch
from outbox.tracing import traceparent
from outbox.watchdog import Watchdog

MAX_INTERRUPTIONS: Final = 5
LOCK_WAITS_LIMIT: Final = timedelta(seconds=2)
"""What the handlers of one batch may wait for locks of others, all together."""

_numbers: Final = itertools.count(1)

Deliveries = Sequence[Delivery[Any]]


class CallFailedError(Exception):
    """The call of a handler failed, or undid effects; ``deliveries`` is what it was called with."""

    def __init__(self, deliveries: Deliveries, error: Exception, kind: ErrorKind, *, is_lock_wait: bool) -> None:
        super().__init__(type(error).__name__)
        self.deliveries, self.error, self.kind, self.is_lock_wait = list(deliveries), error, kind, is_lock_wait

    @property
    def named(self) -> list[Delivery[Any]]:
        """Return the deliveries that it certainly failed by; none where a list has to be bisected."""
        if len(self.deliveries) == 1:
            return self.deliveries
        if isinstance(self.error, FailedDeliveries):
            ids = {each.outbox_id for each in self.error.deliveries}
            return [each for each in self.deliveries if each.outbox_id in ids]
        return []


@dataclass(slots=True)
class Ran:
    """What became of a plan's deliveries; each that is not in one of these took effect."""

    failed: list[Delivery[Any]] = field(default_factory=list)
    """At most one of each key, and the first that failed of it: to be called alone."""
    behind: list[Delivery[Any]] = field(default_factory=list)
    """Those of their keys that come after them."""
    undecided: list[Delivery[Any]] = field(default_factory=list)
    """Of a list that failed and could not be bisected in time: to be called one by one."""
    not_begun: list[Delivery[Any]] = field(default_factory=list)
    """The budget of time was used up: for the next transaction."""
    contended: list[Delivery[Any]] = field(default_factory=list)
    """The budget of lock waits was used up: deferred, tried or not."""

    def left(self) -> set[int]:
        """Return the ids of all that did not take effect."""
        parts = (self.failed, self.behind, self.undecided, self.not_begun, self.contended)
        return {each.outbox_id for part in parts for each in part}


@dataclass(slots=True)
class LockBudget:
    """What one batch has left to wait for locks of others."""

    left_s: float = LOCK_WAITS_LIMIT.total_seconds()

    @property
    def is_used_up(self) -> bool:
        # A wait of a second ends a little early by the server's clock.
        return self.left_s < 0.1


class HandlerCalls:
    """The handlers' part of one transaction, which is open on ``using``.

    ``time_limit`` gives that of an event type, ``budget`` is what the transaction may take before its last call begins.
    ``guards_hooks``: the transaction is the outermost, so ``on_commit`` hooks run behind its commit. ``on_hung`` is
    told, on another thread, that a call does not return though it was interrupted: the process ends.
    """

    def __init__(
        self,
        using: str,
        *,
        watchdog: Watchdog,
        time_limit: Callable[[str], timedelta],
        clock: Callable[[], float],
        budget: timedelta,
        locks: LockBudget,
        guards_hooks: bool,
        on_hung: Callable[[Deliveries], None],
    ) -> None:
        self._connection = connections[using]
        self._driver = self._connection.connection
        self._using = using
        self._watchdog = watchdog
        self._time_limit = time_limit
        self._clock = clock
        self._until = clock() + budget.total_seconds()
        self._locks = locks
        self._guards_hooks = guards_hooks
        self._on_hung = on_hung
        self._watch = StatementWatch()
        self._at_work: Deliveries = ()
        self._savepoint = f"outbox_{next(_numbers)}"

    # --- the three ways to run a plan ----------------------------------------------------------------------------

    def run(self, readables: Sequence[Readable], *, in_savepoints: bool) -> Ran:
        """Call the handlers of ``readables`` and prove that their effects are in the open transaction.

        ``in_savepoints`` finds out which of them fail; without it the first that fails ends the transaction.

        :raises CallFailedError: a call failed and the transaction with it.
        :raises UndoneEffectsError: the transaction in which the handlers wrote is not the open one.
        """
        if not readables:
            return Ran()
        self._execute(f"SAVEPOINT {self._savepoint}")
        with self._connection.execute_wrapper(self._watch):
            ran = self._in_savepoints(readables) if in_savepoints else self._together(readables)
        self._prove()
        return ran

    def _together(self, readables: Sequence[Readable]) -> Ran:
        ran = Ran()
        is_first = True
        for handler, deliveries in group(readables):
            for part in [deliveries] if handler.batch else _each(deliveries):
                if is_first or self._clock() < self._until:
                    self._call(handler, part)
                    is_first = False
                else:
                    ran.not_begun += part
        return ran

    def _in_savepoints(self, readables: Sequence[Readable]) -> Ran:
        ran = Ran()
        failed_keys: set[str] = set()
        parts: deque[tuple[Handler, Deliveries, bool]] = deque()
        for handler, grouped in group(readables):
            parts += [(handler, part, False) for part in ([grouped] if handler.batch else _each(grouped))]
        is_first = True
        while parts:
            handler, deliveries, is_bisected = parts.popleft()
            ran.behind += [each for each in deliveries if each.message_key in failed_keys]
            part = [each for each in deliveries if each.message_key not in failed_keys]
            if not part:
                continue
            if self._locks.is_used_up:
                ran.contended += part
            elif not is_first and self._clock() >= self._until:
                (ran.undecided if is_bisected else ran.not_begun).extend(part)
            else:
                is_first = False
                error = self.try_in_savepoint(handler, part)
                if error is not None:
                    parts.extendleft(reversed([(handler, each, True) for each in self._sort(error, ran, failed_keys)]))
        return ran

    def _sort(self, failed: CallFailedError, ran: Ran, failed_keys: set[str]) -> Sequence[Deliveries]:
        """Note by whom a call failed; return the parts of it that are to be called next."""
        if not failed.named:
            return _halves(failed.deliveries)
        for each in failed.named:
            if each.message_key in failed_keys:
                ran.behind.append(each)
            else:
                failed_keys.add(each.message_key)
                (ran.contended if failed.is_lock_wait and self._locks.is_used_up else ran.failed).append(each)
        rest = [each for each in failed.deliveries if each not in failed.named]
        return [rest] if rest else []

    def try_in_savepoint(self, handler: Handler, deliveries: Deliveries) -> CallFailedError | None:
        """Call a handler; where it fails, undo what it did and return why.

        :raises CallFailedError: the transaction is lost with it.
        """
        try:
            with transaction.atomic(using=self._using):
                self._call(handler, deliveries)
        except CallFailedError as failed:
            is_left = not self._connection.needs_rollback and self._connection.connection is self._driver
            if self._watch.fatal is None and is_left and not isinstance(failed.error, HandlerTimeoutError):
                return failed
            raise
        return None

    # --- one call ------------------------------------------------------------------------------------------------

    def _call(self, handler: Handler, deliveries: Deliveries) -> None:
        connection = self._connection
        self._at_work = deliveries
        depth, hooks = len(connection.savepoint_ids), len(connection.run_on_commit)
        waited_s = self._watch.lock_waits_s
        first = deliveries[0]
        limit_s = self._time_limit(first.event_type).total_seconds()
        try:
            with traceparent(first.traceparent if len(deliveries) == 1 else ""):
                result = self._watchdog.call(
                    handler.function,
                    deliveries if handler.batch else first,
                    limit_s=limit_s,
                    using=self._using,
                    name=first.event_type,
                    on_hung=self._note_hung,
                )
            if result is not None:
                _refuse_unfinished(result)
            if self._is_disturbed(depth):
                raise self._reason()
        except (CallFailedError, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._locks.left_s -= self._watch.lock_waits_s - waited_s
            raise self._failed(deliveries, error) from error
        if self._guards_hooks and len(connection.run_on_commit) > hooks:
            guard_hooks(connection, since=hooks, watchdog=self._watchdog, limit_s=limit_s, name=first.event_type)

    def _is_disturbed(self, depth: int) -> bool:
        """Say whether Django's account of the transaction is another one than before the call."""
        connection = self._connection
        return bool(
            self._watch.fatal is not None
            or connection.needs_rollback
            or connection.connection is not self._driver
            or not connection.in_atomic_block
            or len(connection.savepoint_ids) != depth
        )

    def _reason(self) -> Exception:
        """Return why the effects of a call that returned are not in the transaction."""
        connection = self._connection
        if isinstance(self._watch.fatal, Exception):
            return self._watch.fatal
        if connection.closed_in_transaction:
            return ClosedConnectionError()
        if connection.needs_rollback:
            cause = getattr(connection, "rollback_exc", None) or next(reversed(self._watch.errors), None)
            return UndoneEffectsError.swallowed(cause)
        return UndoneEffectsError.ended()

    def _failed(self, deliveries: Deliveries, error: BaseException) -> CallFailedError:
        if not isinstance(error, Exception):
            error = HandlerExitError(error)
        fatal = self._watch.fatal
        if fatal is not None and not isinstance(error, HandlerTimeoutError):
            error = fatal if isinstance(fatal, Exception) else error
            kind = kind_of(error, self._using)
            return CallFailedError(deliveries, error, kind, is_lock_wait=False)
        if self._connection.closed_in_transaction and isinstance(error, (DatabaseError, InterfaceError)):
            error = ClosedConnectionError()  # what it comes from looks like an outage, and is none
        kind, behind = self._kind_behind(error)
        vendor = self._connection.vendor
        # SQLite's lock is on the whole database: no event is in its way more than another.
        waited = behind is not None and vendor != "sqlite" and is_lock_wait(behind, vendor)
        return CallFailedError(deliveries, error, kind, is_lock_wait=waited)

    def _kind_behind(self, error: BaseException) -> tuple[ErrorKind, BaseException | None]:
        """Return what to do about ``error``, and the error of our database that it was raised from.

        Not one that was merely being handled: an event whose own fault shows on that way only would never die. One of
        another database is the event's own, unless our connection broke as well.
        """
        if isinstance(error, HandlerTimeoutError | ClosedConnectionError):
            return ErrorKind.PERMANENT, None
        seen: set[int] = set()
        at: BaseException | None = error
        while at is not None and id(at) not in seen:
            if isinstance(at, UndoneEffectsError) and at.cause is not None:
                return kind_of(at.cause, self._using), at.cause
            if isinstance(at, (DatabaseError, InterfaceError)):
                return self._kind_of_database_error(at), at
            seen.add(id(at))
            at = at.__cause__
        return ErrorKind.PERMANENT, None

    def _kind_of_database_error(self, error: BaseException) -> ErrorKind:
        if any(each is error for each in self._watch.errors):
            return kind_of(error, self._using)
        # Of another database, or of a driver's cursor that the watch does not see. A conflict costs nothing at first,
        # wherever it was; that a database is away does count only where it is ours.
        if classify(error, self._connection.vendor) is ErrorKind.CONFLICT:
            return ErrorKind.CONFLICT
        is_lost = self._connection.connection is not None and not self._connection.is_usable()
        return ErrorKind.DISCONNECTED if is_lost else ErrorKind.PERMANENT

    def _note_hung(self) -> None:
        self._on_hung(self._at_work)

    # --- the proof -----------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Release the savepoint that was made before the first call.

        :raises UndoneEffectsError: it is not there any more; all that was written with it is lost or committed.
        """
        try:
            self._execute(f"RELEASE SAVEPOINT {self._savepoint}")
        except (DatabaseError, InterfaceError) as error:
            if kind_of(error, self._using) is not ErrorKind.PERMANENT:
                raise
            raise UndoneEffectsError.ended(next(reversed(self._watch.errors), None)) from error

    def _execute(self, sql: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)


def _refuse_unfinished(result: object) -> None:
    """Refuse what a call returns that is work which nobody will do.

    :raises UnfinishedCallError: a coroutine, a generator or a future.
    """
    is_lazy = inspect.isawaitable(result) or inspect.isasyncgen(result) or isinstance(result, (Iterator, Future))
    if is_lazy:
        if inspect.iscoroutine(result):
            result.close()  # or Python warns of it as well
        raise UnfinishedCallError(result)


def _each(deliveries: Deliveries) -> list[Deliveries]:
    return [[each] for each in deliveries]


def _halves(deliveries: Deliveries) -> list[Deliveries]:
    middle = len(deliveries) // 2
    return [deliveries[:middle], deliveries[middle:]]
