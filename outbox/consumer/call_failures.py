"""What the failure of a handler's call means: whom it concerns, and whether it is the event's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import DatabaseError, InterfaceError

from outbox.consumer.batch import Deliveries
from outbox.consumer.statements import StatementWatch
from outbox.coordination.database_errors import ErrorKind, classify, is_lock_wait, is_usable, kind_of
from outbox.declarations.handlers import Delivery
from outbox.exceptions import (
    ClosedConnectionError,
    FailedDeliveries,
    HandlerExitError,
    HandlerTimeoutError,
    UndoneEffectsError,
    UnfinishedCallError,
)


class CallFailedError(Exception):
    """Private to the consumer. The call of a handler with ``deliveries`` failed, or undid effects."""

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


def call_failure(
    deliveries: Deliveries, error: BaseException, *, connection: BaseDatabaseWrapper, watch: StatementWatch
) -> CallFailedError:
    """Return what ``error``, raised by a call with ``deliveries``, means for its transaction on ``connection``."""
    if not isinstance(error, Exception):
        error = HandlerExitError(error)
    if isinstance(error, HandlerTimeoutError):
        return CallFailedError(deliveries, error, ErrorKind.PERMANENT, is_lock_wait=False)
    if isinstance(watch.fatal, Exception):
        return CallFailedError(deliveries, watch.fatal, kind_of(watch.fatal, connection.alias), is_lock_wait=False)
    if connection.closed_in_transaction and isinstance(error, (DatabaseError, InterfaceError)):
        error = ClosedConnectionError()  # what it comes from looks like an outage, and is none
    kind, behind = _kind_behind(error, connection, watch)
    # SQLite's lock is on the whole database: no event is in its way more than another.
    waited = behind is not None and connection.vendor != "sqlite" and is_lock_wait(behind, connection.vendor)
    return CallFailedError(deliveries, error, kind, is_lock_wait=waited)


def _kind_behind(
    error: BaseException, connection: BaseDatabaseWrapper, watch: StatementWatch
) -> tuple[ErrorKind, BaseException | None]:
    """Return what to do about ``error``, and the database's error that it was raised from.

    Not one that was merely being handled: an event whose own fault shows on that way only would never die.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        if isinstance(at, ClosedConnectionError):
            break
        if isinstance(at, UndoneEffectsError) and at.cause is not None:
            return kind_of(at.cause, connection.alias), at.cause
        if isinstance(at, (DatabaseError, InterfaceError)):
            return _kind_of_database_error(at, connection, watch), at
        seen.add(id(at))
        at = at.__cause__
    return ErrorKind.PERMANENT, None


def _kind_of_database_error(error: BaseException, connection: BaseDatabaseWrapper, watch: StatementWatch) -> ErrorKind:
    if any(each is error for each in watch.errors):
        kind = kind_of(error, connection.alias)
        # MySQL calls a statement that ended its own connection interrupted.
        is_gone = kind is ErrorKind.CONFLICT and connection.vendor == "mysql" and not is_usable(connection)
        return ErrorKind.DISCONNECTED if is_gone else kind
    # Of another database, or of a driver's cursor that the watch does not see. A conflict costs nothing at first,
    # wherever it was; that a database is unavailable counts only where it is ours.
    if classify(error, connection.vendor) is ErrorKind.CONFLICT:
        return ErrorKind.CONFLICT
    is_lost = connection.connection is not None and not is_usable(connection)
    return ErrorKind.DISCONNECTED if is_lost else ErrorKind.PERMANENT


def refuse_unfinished(result: object) -> None:
    """Refuse what a call returns that is work which nobody will do.

    :raises UnfinishedCallError: a coroutine, a generator or a future.
    """
    is_lazy = inspect.isawaitable(result) or inspect.isasyncgen(result) or isinstance(result, Future)
    # An iterator gives itself; a mock, which can do all, gives another one.
    if is_lazy or (isinstance(result, Iterator) and iter(result) is result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns of it as well
        raise UnfinishedCallError(result)
