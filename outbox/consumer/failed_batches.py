"""What the transaction of a batch failed by, and in which portions to go on. Decides only; it writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.utils import DatabaseError, InterfaceError

from outbox.consumer.batch import Batch, Deliveries
from outbox.consumer.call_failures import CallFailedError
from outbox.consumer.portions import Portion, Way, each_alone, halves
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.exceptions import HandlerTimeoutError, LostRowError, UndoneEffectsError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a transaction came to nothing."""

    error: Exception
    kind: ErrorKind
    call: CallFailedError | None = None
    """The handler's call that it failed by."""
    is_handlers_doing: bool = False
    """A handler undid the transaction or moved its row, and which one shows when each is alone."""

    @property
    def is_lock_wait(self) -> bool:
        return self.call is not None and self.call.is_lock_wait

    @property
    def is_late(self) -> bool:
        return isinstance(self.error, HandlerTimeoutError)


def failure_of(error: Exception, using: str, *, calls_are_over: bool, is_committing: bool) -> Failure:
    """Say what ``error`` means, which ended a transaction on ``using`` at that stage of it."""
    if isinstance(error, CallFailedError):
        return Failure(error.error, error.kind, error)
    if isinstance(error, UndoneEffectsError):
        return Failure(error, ErrorKind.PERMANENT, is_handlers_doing=True)
    kind = kind_of(error, using) if isinstance(error, (DatabaseError, InterfaceError)) else ErrorKind.PERMANENT
    is_theirs = isinstance(error, LostRowError) or (is_committing and kind is ErrorKind.PERMANENT)
    return Failure(error, kind, is_handlers_doing=is_theirs and calls_are_over)


def portions_after(failed: Failure, batch: Batch) -> list[Portion]:
    """Return the portions in which to find out what a transaction failed by, and to do the others."""
    records, call = batch.portion.records, failed.call
    if call is None:
        return each_alone(records) if failed.is_handlers_doing else halves(records)
    if call.named:
        return around(call.named, call.named, batch)
    if failed.kind is ErrorKind.PERMANENT and not failed.is_late and batch.portion.way is Way.TOGETHER:
        return [Portion(records, Way.IN_SAVEPOINTS)]
    # A list whose failure takes the transaction along cannot be bisected by savepoints.
    return around(call.deliveries, call.deliveries, batch)


def around(out: Deliveries, alone: Deliveries, batch: Batch) -> list[Portion]:
    """Return the portions without ``out`` and what follows them in their keys, then ``alone``, then those."""
    behind = batch.behind(out)
    apart = behind | {each.outbox_id for each in out}
    taken = {id(record) for (row_id, _), records in batch.messages.items() if row_id in apart for record in records}
    rest = [record for record in batch.portion.records if id(record) not in taken]
    first = {each.outbox_id for each in alone} - behind
    return [
        *([Portion(rest, Way.IN_SAVEPOINTS)] if rest else []),
        *each_alone(batch.records_of(first)),
        *halves(batch.records_of(behind)),
    ]
