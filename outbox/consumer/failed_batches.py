"""In which portions to go on after the transaction of several events failed. Decides only; it writes nothing."""

from __future__ import annotations

from outbox.consumer.batch_transaction import BatchTransaction, TransactionFailedError
from outbox.consumer.call_failures import Deliveries
from outbox.consumer.portions import Portion, Way, each_alone, halves
from outbox.coordination.database_errors import ErrorKind
from outbox.exceptions import HandlerTimeoutError


def portions_after(failed: TransactionFailedError, current: BatchTransaction) -> list[Portion]:
    """Return the portions in which to find out what a transaction failed by, and to do the others."""
    records, call = current.portion.records, failed.call
    if call is None:
        return each_alone(records) if failed.is_handlers_doing else halves(records)
    if call.named:
        return around(call.named, call.named, current)
    is_late = isinstance(failed.error, HandlerTimeoutError)
    if failed.kind is ErrorKind.PERMANENT and not is_late and current.portion.way is Way.TOGETHER:
        return [Portion(records, Way.IN_SAVEPOINTS)]
    # A list whose failure takes the transaction along cannot be bisected by savepoints.
    return around(call.deliveries, call.deliveries, current)


def around(out: Deliveries, alone: Deliveries, current: BatchTransaction) -> list[Portion]:
    """Return the portions without ``out`` and what follows them in their keys, then ``alone``, then those."""
    behind = current.behind(out)
    apart = behind | {each.outbox_id for each in out}
    taken = {id(record) for (row_id, _), records in current.messages.items() if row_id in apart for record in records}
    rest = [record for record in current.portion.records if id(record) not in taken]
    first = {each.outbox_id for each in alone} - behind
    return [
        *([Portion(rest, Way.IN_SAVEPOINTS)] if rest else []),
        *each_alone(current.records_of(first)),
        *halves(current.records_of(behind)),
    ]
