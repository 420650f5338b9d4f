"""Brings a batch of records to its end: transaction by transaction, until every event of it is settled.

A record only says which row to look at; the row is the truth. So a repeated record changes nothing, and an edited event
runs with its new payload whatever is still on the topic. A batch that fails is done again without the events that it
fails by, and those alone: see ``outbox.consumer.isolation`` for whose failure it is.
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
from outbox.consumer.batch_transaction import BatchTransaction, Tools, TooMuchAtOnce, TransactionFailedError
from outbox.consumer.blame import message_of
from outbox.consumer.call_failures import Deliveries
from outbox.consumer.failed_batches import around, portions_after
from outbox.consumer.isolation import LockBudget
from outbox.consumer.outcomes import ConsumerTotals, News, Outcome
from outbox.consumer.portions import Portion, Way, each_alone, fitting, whole
from outbox.consumer.reading import RowReader
from outbox.consumer.settling import Settling
from outbox.consumer.waiting import WaitingEvents
from outbox.consumer.watchdog import Watchdog
from outbox.consumer.writing import PlanWriter
from outbox.coordination.database_errors import ErrorKind
from outbox.coordination.heartbeat import NullHeartbeat, Witness
from outbox.declarations.backoff import RetryPolicy
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import HandlerRegistry
from outbox.exceptions import ConnectionLostError, HandlerTimeoutError, LostRowError
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import RejectionStore
from outbox.storage.rows import Locked

_CONFLICT_LIMIT: Final = 5
"""A transaction that loses its locks this often in a row is done event by event; an event alone is deferred then."""

_FAULT_LIMIT: Final = 10
"""So many records in a row that came to a fault of our own, and none before that came to its end: it is not theirs."""


class _OwnFault(Exception):  # noqa: N818 - carries the cause out of a portion
    """Private to the consumer. Something of our own failed: no event is charged."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


class BatchHandling:
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
        self._news = News(repository.route.service, self.totals)
        self._repository = repository
        self._using = repository.route.database
        self._wake_relays = wake_relays
        self._on_hung_noted = on_hung_noted
        self._waiting = WaitingEvents()
        self._settling = Settling(
            repository,
            news=self._news,
            waiting=self._waiting,
            retry_policy=retry_policy,
            parks_key=parks_key,
            rand=rand,
            wake_relays=wake_relays,
            witness=witness or NullHeartbeat(),
        )
        self._tools = Tools(
            repository=repository,
            rejections=rejections,
            reader=RowReader(repository, contracts, handlers),
            writer=PlanWriter(
                repository, options=options, waiting=self._waiting, redeliver_after=redeliver_after, rand=rand
            ),
            options=options,
            parks_key=parks_key,
            watchdog=watchdog,
            time_limit=time_limit,
            witness=witness or NullHeartbeat(),
            clock=clock,
            back_off=self._settling.back_off,
        )
        self.announcements = Announcements(repository)
        self._current: BatchTransaction | None = None

    def handle(
        self,
        records: Sequence[IncomingRecord],
        *,
        is_suspect: Callable[[IncomingRecord], bool] | None = None,
        is_young: Callable[[IncomingRecord], bool] = lambda _record: False,
    ) -> list[IncomingRecord]:
        """Bring every record to an end: consumed, deferred, dead or rejected; return those that nothing was done about.

        Those are records whose rows somebody else has locked, and those behind a fault of our own: try them again.
        ``is_suspect`` says which are done alone and announced. What follows the locked row of an ``is_young`` record in
        its key is returned with it instead of being deferred: a relay that marks its rows locks them for moments only.

        :raises DatabaseError: the database is away; nothing, or a first part of the records, is done.
        :raises Exception: a fault of our own that nothing of the batch got past; nothing is done.
        """
        self.announcements.withdraw()
        portions = deque(self._first_portions(records, is_suspect))
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

    def _first_portions(
        self, records: Sequence[IncomingRecord], is_suspect: Callable[[IncomingRecord], bool] | None
    ) -> list[Portion]:
        ordered = sorted(records, key=attrgetter("partition", "offset"))
        if is_suspect is None:
            return whole(ordered)
        suspects = [each for each in ordered if is_suspect(each)]
        apart = set(map(id, suspects))
        together = whole([each for each in ordered if id(each) not in apart])
        return [*(Portion([each], Way.SUSPECT) for each in suspects), *together]

    # --- one portion ---------------------------------------------------------------------------------------------

    def _do(
        self,
        portion: Portion,
        locks: LockBudget,
        held: list[IncomingRecord],
        is_young: Callable[[IncomingRecord], bool],
    ) -> list[Portion]:
        """Do one portion; return what is to be done before the next one, or behind all.

        :raises DatabaseError: the database is away.
        """
        for attempt in range(1, _CONFLICT_LIMIT + 1):
            current = BatchTransaction(self._tools, portion, locks, is_young, self._note_hung)
            self._current = current
            try:
                outcome = current.run()
            except TooMuchAtOnce:
                return fitting(portion.records, current.payload_lengths(), max_bytes=self._tools.options.batch_bytes)
            except TransactionFailedError as error:
                failed = error
            else:
                self._committed(outcome)
                held += outcome.locked
                return self._next_of(portion, outcome)
            # Outside of the except clause: what other events raise from here on did not happen because of this.
            if failed.kind is not ErrorKind.CONFLICT or failed.is_lock_wait or attempt == _CONFLICT_LIMIT:
                break
        return self._after(failed, current)

    def _next_of(self, portion: Portion, outcome: Outcome) -> list[Portion]:
        if portion.announced is not None and not outcome.locked:
            self.announcements.ended(portion.announced)
        row = outcome.announced
        if row is None:
            return outcome.left
        return [Portion(portion.records, Way.ALONE, announced=self.announcements.note(row))]

    def _after(self, failed: TransactionFailedError, current: BatchTransaction) -> list[Portion]:
        """Settle what a transaction failed by, or return the portions in which to look for it.

        :raises DatabaseError: the database is away.
        """
        portion, call, kind = current.portion, failed.call, failed.kind
        if kind is ErrorKind.UNAVAILABLE or (
            kind is ErrorKind.DISCONNECTED and not current.connection_lived_on_elsewhere()
        ):
            self._raise_unavailable(failed.error)
        if isinstance(failed.error, HandlerTimeoutError) and current.database_was_silent():
            self._raise_unavailable(failed.error)  # it waited for a database that did not answer
        if kind is ErrorKind.DISCONNECTED:
            connections[self._using].close()
        if len(portion.records) == 1:
            return self._settle(failed, current)
        if call is None and kind is ErrorKind.PERMANENT and not failed.is_handlers_doing:
            raise _OwnFault(failed.error)
        if call is not None and len(call.deliveries) == 1 and isinstance(failed.error, HandlerTimeoutError):
            # What takes too long is not called a second time.
            self._settling.failed(_row_of(call.deliveries, current), failed.error)
            return around(call.deliveries, (), current)
        return portions_after(failed, current)

    # --- one event alone -----------------------------------------------------------------------------------------

    def _settle(self, failed: TransactionFailedError, current: BatchTransaction) -> list[Portion]:
        """Write down what happened to an event that stood alone.

        :raises DatabaseError: the database is away.
        :raises _OwnFault: by a fault of our own.
        """
        row = current.row
        if failed.kind is ErrorKind.PERMANENT and (failed.call is not None or failed.is_handlers_doing):
            self._settling.failed(_known(row), failed.error, is_counted=current.portion.announced is not None)
        elif row is None or failed.kind is ErrorKind.PERMANENT:
            raise _OwnFault(failed.error)
        elif failed.kind is ErrorKind.CONFLICT:
            self.totals.waited += self._settling.defer(row, failed.error)
        elif current.portion.announced is None:  # else it is counted already
            self._settling.interrupted(row, ConnectionLostError(failed.error))
        if row is not None:
            self.announcements.ended(row)
        return []

    def _note_hung(self, deliveries: Deliveries) -> None:
        """Charge an event whose call does not return, on the watchdog's thread: the process is about to end.

        Which event of a list it is shows when whoever takes the partition over does them one by one.
        """
        self.is_hung = True
        current = self._current
        if current is not None and len(deliveries) == 1:
            row = _row_of(deliveries, current)
            if self._settling.hangs(row, limit=self._tools.time_limit(row.event_type)):
                self.announcements.ended(row)
                self._on_hung_noted()

    def _raise_unavailable(self, error: Exception) -> NoReturn:
        connections[self._using].close()
        raise InterfaceError(f"the database went away during a transaction: {message_of(error)}") from error

    # --- what was committed --------------------------------------------------------------------------------------

    def _committed(self, outcome: Outcome) -> None:
        """Remember who waits for whom, and tell the world."""
        contended = self._settling.contended
        for key, gone in outcome.finished.items() if contended or self._waiting else ():
            self._waiting.finished(key, gone=gone, woken=outcome.woken.get(key, []))
            contended.forget(gone)
        for key, ids in outcome.put_back.items():
            self._waiting.put_back(key, ids)
        if outcome.woken or outcome.redelivered:
            self._wake_relays()
        self._news.tell(outcome)


def _known(row: Locked | None) -> Locked:
    if row is None:
        raise LostRowError("a handler was called for a row that was not locked")
    return row


def _row_of(deliveries: Deliveries, current: BatchTransaction) -> Locked:
    return next(row for row in current.live if row.id == deliveries[0].outbox_id)
