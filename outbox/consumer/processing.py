"""Brings a batch of records to its end: transaction by transaction, until every event of it is settled.

Each transaction is an attempt at one portion of the batch (``outbox.consumer.transaction``). A batch that fails is done
again without the events that it fails by, and those alone: see ``outbox.consumer.isolation`` for whose failure it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter
from time import monotonic
from typing import Final, NoReturn

from django.db import connections
from django.db.utils import InterfaceError

from outbox.brokers.base import IncomingRecord
from outbox.conf import ConsumerOptions
from outbox.consumer.announcements import Announcements
from outbox.consumer.batch import Batch, Deliveries, Outcome
from outbox.consumer.blame import message_of
from outbox.consumer.charges import Charges
from outbox.consumer.failed_batches import Failure, around, portions_after
from outbox.consumer.intake import TooMuchAtOnce
from outbox.consumer.isolation import LockBudget
from outbox.consumer.portions import Portion, Way, each_alone, fitting, whole
from outbox.consumer.reading import RowReader
from outbox.consumer.report import ConsumerTotals, News
from outbox.consumer.settle import Settle
from outbox.consumer.transaction import Attempt, BatchTransactions
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.database_errors import ErrorKind
from outbox.coordination.heartbeat import NullHeartbeat, Witness
from outbox.declarations.backoff import RetryPolicy
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import HandlerRegistry
from outbox.exceptions import ConnectionLostError, LostRowError
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import RejectionStore

_CONFLICT_LIMIT: Final = 5
"""A transaction that loses its locks this often in a row is done event by event; an event alone is deferred then."""

_FAULT_LIMIT: Final = 10
"""So many records in a row that came to a fault of our own, and none before that came to its end: it is not theirs."""

IsYoung = Callable[[IncomingRecord], bool]


class _OwnFault(Exception):  # noqa: N818 - carries the cause out of a portion
    """Private to the consumer. Something of our own failed: no event is charged."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


class BatchProcessor:
    """What one service's consumer does with the records it received.

    ``rand`` gives the random share of a back-off, in [0, 1). ``retry_policy`` gives the back-off of an event
    type, ``parks_key`` whether its death holds back its key, ``time_limit`` how long a call of its handler may take.
    ``witness`` says whether a lost connection was the database's doing. An event for which others wait is sent again
    when it was sent ``redeliver_after`` ago and has not come. ``wake_relays`` is called when rows became due,
    ``on_hung_noted`` when an event was charged whose handler does not return. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        *,
        repository: ConsumerRows,
        rejections: RejectionStore,
        contracts: ContractRegistry,
        handlers: HandlerRegistry,
        options: ConsumerOptions,
        retry_policy: Callable[[str], RetryPolicy],
        parks_key: Callable[[str], bool],
        time_limit: Callable[[str], timedelta],
        rand: Callable[[], float],
        watchdog: Watchdog,
        witness: Witness | None = None,
        on_hung_noted: Callable[[], None] = lambda: None,
        redeliver_after: timedelta | None = None,
        wake_relays: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.totals = ConsumerTotals()
        self.is_hung = False
        """A handler does not return, and the process is about to end because of it."""
        self.announcements = Announcements(repository)
        self._using = repository.route.database
        self._batch_bytes = options.batch_bytes
        self._time_limit = time_limit
        self._witness = witness or NullHeartbeat()
        self._on_hung_noted = on_hung_noted
        self._wake_relays = wake_relays
        self._news = News(repository.route.service, self.totals)
        self._charges = Charges(
            repository,
            news=self._news,
            retry_policy=retry_policy,
            parks_key=parks_key,
            rand=rand,
            wake_relays=wake_relays,
            witness=self._witness,
        )
        self._transactions = BatchTransactions(
            repository,
            reader=RowReader(repository, contracts, handlers),
            settle=Settle(
                repository,
                rejections,
                options=options,
                redeliver_after=redeliver_after,
                rand=rand,
                back_off=self._charges.back_off,
            ),
            options=options,
            parks_key=parks_key,
            time_limit=time_limit,
            watchdog=watchdog,
            witness=self._witness,
            clock=clock,
            on_hung=self._note_hung,
        )

    def process(
        self,
        records: Sequence[IncomingRecord],
        *,
        is_suspect: Callable[[IncomingRecord], bool] | None = None,
        is_young: IsYoung = lambda _record: False,
    ) -> list[IncomingRecord]:
        """Bring every record to an end: consumed, deferred, dead or rejected; return those that nothing was done about.

        Those are records whose rows somebody else has locked, and those behind a fault of our own: try them again.
        ``is_suspect`` says which are done alone and announced. What follows the locked row of an ``is_young`` record in
        its key is returned with it instead of being deferred: a relay that marks its rows locks them for moments only.

        :raises DatabaseError: the database is away; nothing, or a first part of the records, is done.
        :raises Exception: a fault of our own that nothing of the batch got past; nothing is done.
        """
        self.announcements.withdraw()
        portions = deque(_first_portions(records, is_suspect))
        locks = LockBudget()
        held: list[IncomingRecord] = []
        faults, got_on = 0, False
        while portions:
            portion = portions.popleft()
            try:
                left = self._do(portion, locks, held, is_young)
                got_on = True
            except _OwnFault as fault:
                if len(portion.records) > 1:
                    portions.extendleft(reversed(each_alone(portion.records)))
                    continue
                faults += 1
                if not got_on and (faults == _FAULT_LIMIT or not portions):
                    raise fault.cause from None
                self._news.tell_fault(fault.cause)
                held += portion.records
            else:
                portions.extendleft(each for each in reversed(left) if not each.is_last)
                portions.extend(each for each in left if each.is_last)
        return held

    # --- one portion ---------------------------------------------------------------------------------------------

    def _do(self, portion: Portion, locks: LockBudget, held: list[IncomingRecord], is_young: IsYoung) -> list[Portion]:
        """Do one portion; return what is to be done before the next one, or behind all.

        :raises DatabaseError: the database is away.
        """
        for attempt in range(1, _CONFLICT_LIMIT + 1):
            try:
                made = self._transactions.attempt(portion, locks, is_young=is_young)
            except TooMuchAtOnce as error:
                return fitting(portion.records, error.lengths, max_bytes=self._batch_bytes)
            if isinstance(made.result, Outcome):
                self._committed(made.result)
                held += made.result.locked
                return self._next_of(portion, made.result)
            failed = made.result
            if failed.kind is not ErrorKind.CONFLICT or failed.is_lock_wait or attempt == _CONFLICT_LIMIT:
                break
        return self._after(failed, made)

    def _committed(self, outcome: Outcome) -> None:
        """Forget what found locks in its way, and tell the world."""
        contended = self._charges.contended
        for gone in outcome.finished.values() if contended else ():
            contended.forget(gone)
        if outcome.released or outcome.redelivered:
            self._wake_relays()
        self._news.tell(outcome)

    def _next_of(self, portion: Portion, outcome: Outcome) -> list[Portion]:
        if portion.announced is not None and not outcome.locked:
            self.announcements.ended(portion.announced)
        row = outcome.announced
        if row is None:
            return outcome.left
        return [Portion(portion.records, Way.ALONE, announced=self.announcements.note(row))]

    # --- what failed ---------------------------------------------------------------------------------------------

    def _after(self, failed: Failure, made: Attempt) -> list[Portion]:
        """Settle what a transaction failed by, or return the portions in which to look for it.

        :raises DatabaseError: the database is away.
        """
        batch, call, kind = made.batch, failed.call, failed.kind
        if kind is ErrorKind.UNAVAILABLE or (kind is ErrorKind.DISCONNECTED and not self._witness.lived_on(made.token)):
            self._raise_unavailable(failed.error)
        if failed.is_late and made.token is not None and not self._witness.lived_on(made.token):
            self._raise_unavailable(failed.error)  # it waited for a database that did not answer
        if kind is ErrorKind.DISCONNECTED:
            connections[self._using].close()
        if len(batch.portion.records) == 1:
            return self._settle_alone(failed, batch)
        if call is None and kind is ErrorKind.PERMANENT and not failed.is_handlers_doing:
            raise _OwnFault(failed.error)
        if call is not None and len(call.deliveries) == 1 and failed.is_late:
            # What takes too long is not called a second time.
            self._charges.failed(batch.row_of(call.deliveries), failed.error)
            return around(call.deliveries, (), batch)
        return portions_after(failed, batch)

    def _settle_alone(self, failed: Failure, batch: Batch) -> list[Portion]:
        """Write down what happened to an event that stood alone.

        :raises DatabaseError: the database is away.
        :raises _OwnFault: by a fault of our own.
        """
        row, is_counted = batch.row, batch.portion.announced is not None
        if failed.kind is ErrorKind.PERMANENT and (failed.call is not None or failed.is_handlers_doing):
            if row is None:
                raise LostRowError("a handler was called for a row that was not locked")
            self._charges.failed(row, failed.error, is_counted=is_counted)
        elif row is None or failed.kind is ErrorKind.PERMANENT:
            raise _OwnFault(failed.error)
        elif failed.kind is ErrorKind.CONFLICT:
            self.totals.waited += self._charges.defer(row, failed.error)
        elif not is_counted:
            self._charges.interrupted(row, ConnectionLostError(failed.error))
        if row is not None:
            self.announcements.ended(row)
        return []

    def _note_hung(self, batch: Batch, deliveries: Deliveries) -> None:
        """Charge an event whose call does not return, on the watchdog's thread: the process is about to end.

        Which event of a list it is shows when whoever takes the partition over does them one by one.
        """
        self.is_hung = True
        if len(deliveries) == 1:
            row = batch.row_of(deliveries)
            if self._charges.hangs(row, limit=self._time_limit(row.event_type)):
                self.announcements.ended(row)
                self._on_hung_noted()

    def _raise_unavailable(self, error: Exception) -> NoReturn:
        connections[self._using].close()
        raise InterfaceError(f"the database went away during a transaction: {message_of(error)}") from error


def _first_portions(
    records: Sequence[IncomingRecord], is_suspect: Callable[[IncomingRecord], bool] | None
) -> list[Portion]:
    ordered = sorted(records, key=attrgetter("partition", "offset"))
    if is_suspect is None:
        return whole(ordered)
    suspects = [each for each in ordered if is_suspect(each)]
    apart = set(map(id, suspects))
    together = whole([each for each in ordered if id(each) not in apart])
    return [*(Portion([each], Way.SUSPECT) for each in suspects), *together]
