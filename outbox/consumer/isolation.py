"""The step that runs handlers: whose failure it is, and whose effects are in the transaction.

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

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError, InterfaceError

from outbox.consumer.batch import Deliveries
from outbox.consumer.call_failures import CallFailedError, call_failure, refuse_unfinished
from outbox.consumer.hooks import guard_hooks
from outbox.consumer.planning import Readable, group
from outbox.consumer.statements import StatementWatch
from outbox.consumer.transaction_state import TransactionState
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.declarations.handlers import Delivery, Handler
from outbox.exceptions import ClosedConnectionError, HandlerTimeoutError, UndoneEffectsError
from outbox.storage.sessions import make_savepoint, release_savepoint
from outbox.wire.tracing import traceparent

MAX_INTERRUPTIONS: Final = 5
LOCK_WAITS_LIMIT: Final = timedelta(seconds=2)
"""What the handlers of one batch may wait for locks of others, all together."""

_numbers: Final = itertools.count(1)
_NO_ID: Final = 2**63
"""Behind every id."""


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
        self._connection: Any = connections[using]
        self._using = using
        self._watchdog = watchdog
        self._time_limit = time_limit
        self._limits_s: dict[str, float] = {}
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
        make_savepoint(self._connection, self._savepoint)
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
        first_failed: dict[str, int] = {}
        parts: deque[tuple[Handler, Deliveries, bool]] = deque()
        for handler, grouped in group(readables):
            parts += [(handler, part, False) for part in ([grouped] if handler.batch else _each(grouped))]
        is_first = True
        while parts:
            handler, deliveries, is_bisected = parts.popleft()
            ran.behind += [each for each in deliveries if each.outbox_id > first_failed.get(each.message_key, _NO_ID)]
            part = [each for each in deliveries if each.outbox_id < first_failed.get(each.message_key, _NO_ID)]
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
                    parts.extendleft(reversed([(handler, each, True) for each in self._sort(error, ran, first_failed)]))
        return ran

    def _sort(self, failed: CallFailedError, ran: Ran, first_failed: dict[str, int]) -> Sequence[Deliveries]:
        """Note by whom a call failed; return the parts of it that are to be called next."""
        if not failed.named:
            return _halves(failed.deliveries)
        into = ran.contended if failed.is_lock_wait and self._locks.is_used_up else ran.failed
        for each in failed.named:
            if each.outbox_id < first_failed.get(each.message_key, _NO_ID):
                # A handler that names what failed of a list may have named a later one of this key before.
                into.append(each)
                first_failed[each.message_key] = each.outbox_id
            else:
                ran.behind.append(each)
        ran.behind += [each for each in ran.failed if each.outbox_id > first_failed[each.message_key]]
        ran.failed = [each for each in ran.failed if each.outbox_id == first_failed[each.message_key]]
        rest = [each for each in failed.deliveries if each not in failed.named]
        return [rest] if rest else []

    def try_in_savepoint(self, handler: Handler, deliveries: Deliveries) -> CallFailedError | None:
        """Call a handler; where it fails, undo what it did and return why.

        :raises CallFailedError: the transaction is lost with it.
        """
        state = TransactionState(self._connection)
        try:
            with transaction.atomic(using=self._using):
                self._call(handler, deliveries)
        except CallFailedError as failed:
            if self._watch.fatal is None and state.is_kept and not isinstance(failed.error, HandlerTimeoutError):
                return failed
            raise
        return None

    # --- one call ------------------------------------------------------------------------------------------------

    def _call(self, handler: Handler, deliveries: Deliveries) -> None:
        connection, watch = self._connection, self._watch
        self._at_work = deliveries
        state, hooks = TransactionState(connection), len(connection.run_on_commit)
        waited_s, errors = watch.lock_waits_s, len(watch.errors)
        first = deliveries[0]
        limit_s = self._limit_of(first.event_type)
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
                refuse_unfinished(result)
            if watch.fatal is not None or not state.is_kept:
                raise self._reason(state, watch.errors[errors:])
        except (CallFailedError, KeyboardInterrupt):
            raise
        except BaseException as error:
            state.leave_blocks()
            is_open = not connection.closed_in_transaction
            if isinstance(error, TransactionManagementError) and connection.needs_rollback and is_open:
                error = _undone(state, watch.errors[errors:], seen_by=error)
            raise call_failure(deliveries, error, connection=connection, watch=watch) from error
        finally:
            self._locks.left_s -= watch.lock_waits_s - waited_s
        if self._guards_hooks and len(connection.run_on_commit) > hooks:
            guard_hooks(connection, since=hooks, watchdog=self._watchdog, limit_s=limit_s, name=first.event_type)

    def _limit_of(self, event_type: str) -> float:
        limit_s = self._limits_s.get(event_type)
        if limit_s is None:
            limit_s = self._limits_s[event_type] = self._time_limit(event_type).total_seconds()
        return limit_s

    def _reason(self, state: TransactionState, errors: Sequence[BaseException]) -> Exception:
        """Return why the effects of a call that returned, with ``errors`` in it, are not in the transaction."""
        connection = self._connection
        if isinstance(self._watch.fatal, Exception):
            return self._watch.fatal
        if connection.closed_in_transaction:
            return ClosedConnectionError()
        if connection.needs_rollback:
            return _undone(state, errors)
        return UndoneEffectsError.ended(next(reversed(errors), None))

    def _note_hung(self) -> None:
        self._on_hung(self._at_work)

    # --- the proof -----------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Release the savepoint that was made before the first call.

        :raises UndoneEffectsError: it is not there any more; all that was written with it is lost or committed.
        """
        try:
            release_savepoint(self._connection, self._savepoint)
        except (DatabaseError, InterfaceError) as error:
            if kind_of(error, self._using) is not ErrorKind.PERMANENT:
                raise
            raise UndoneEffectsError.ended(next(reversed(self._watch.errors), None)) from error


def _undone(
    state: TransactionState, errors: Sequence[BaseException], *, seen_by: BaseException | None = None
) -> UndoneEffectsError:
    """Return the error of a call after which Django rolls back; ``seen_by`` a later statement, which Django refused."""
    undone = UndoneEffectsError.swallowed(state.marked_by or next(reversed(errors), None))
    undone.__cause__ = seen_by
    return undone


def _each(deliveries: Deliveries) -> list[Deliveries]:
    return [[each] for each in deliveries]


def _halves(deliveries: Deliveries) -> list[Deliveries]:
    middle = len(deliveries) // 2
    return [deliveries[:middle], deliveries[middle:]]
