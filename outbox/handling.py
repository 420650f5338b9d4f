"""Brings a batch of records to its end: runs the handlers in the transaction that marks their events consumed.

A record only says which row to look at; the row is the truth. So a repeated record changes nothing, and an edited event
runs with its new payload whatever is still on the topic. A batch that fails is done again without the events that it
fails by, and those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from django.db import connections, transaction
from django.db.utils import DatabaseError, InterfaceError

from outbox.backoff import RetryPolicy, delay
from outbox.blame import failure_of, raise_if_away, trouble_behind
from outbox.brokers.base import IncomingRecord
from outbox.conf import ConsumerOptions
from outbox.contracts import ContractRegistry
from outbox.delivering import call_handlers, sift
from outbox.envelope import decode_envelope, decode_message
from outbox.exceptions import (
    ClosedConnectionError,
    Discard,
    EnvelopeError,
    LostRowError,
    NoHandlerError,
    Retry,
    UnknownEventTypeError,
    UnreadableError,
)
from outbox.handlers import Delivery, HandlerRegistry
from outbox.lifecycle import UNFINISHED
from outbox.outcomes import ConsumerTotals, News, Outcome
from outbox.planning import Burial, Plan, Readable, lost_before, make_plan, waits_until
from outbox.rejections import Rejection, RejectionStore
from outbox.repository import OutboxRepository
from outbox.rows import Locked
from outbox.sql import RolledBackWatch, Trouble
from outbox.waiting import WaitingEvents

_LONGEST_PAUSE = timedelta(days=3650)
"""Whatever a handler asks for, the moment must be one that a database can hold."""

_CONTENTION_LIMIT = 5
"""A transaction that loses its locks this often in a row is cut, and an event that does so alone is put off."""

_WOKEN_AT_ONCE = 500
"""About so many events are woken by one batch; the others come when they are due."""


_Messages = dict[tuple[int, str], list[IncomingRecord]]
"""The records of a batch by row and event type: a foreign record with the id of a row must not hide the row's own."""


class _HandlingFailed(Exception):  # noqa: N818 - carries the cause out of the transaction, so that it is rolled back
    """Something in the transaction raised; ``row`` is the guilty one where it stood alone."""

    def __init__(self, row: Locked | None, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.row, self.cause = row, cause


class _TooMuchAtOnce(Exception):  # noqa: N818 - not an error: the batch is cut
    """The payloads of the batch are more than one transaction should hold."""


class BatchHandling:
    """What one service's consumer does with the records it received.

    ``rand`` gives the random share of a back-off, in [0, 1). ``retry_policy`` gives the back-off of an event
    type, ``parks_key`` whether its death holds back its key. An event for which others wait is sent again
    when it was sent ``redeliver_after`` ago and has not come. ``wake_relays`` is called when rows became due.
    """

    def __init__(
        self,
        *,
        repository: OutboxRepository,
        rejections: RejectionStore,
        contracts: ContractRegistry,
        handlers: HandlerRegistry,
        options: ConsumerOptions,
        retry_policy: Callable[[str], RetryPolicy],
        parks_key: Callable[[str], bool],
        rand: Callable[[], float],
        redeliver_after: timedelta | None = None,
        wake_relays: Callable[[], None] = lambda: None,
    ) -> None:
        self.totals = ConsumerTotals()
        self._news = News(repository.route.service, self.totals)
        self._repository = repository
        self._route = repository.route
        self._rejections = rejections
        self._contracts = contracts
        self._handlers = handlers
        self._options = options
        self._retry_policy = retry_policy
        self._parks_key = parks_key
        self._rand = rand
        self._redeliver_after = redeliver_after
        self._wake_relays = wake_relays
        self._waiting = WaitingEvents()

    def handle(self, records: Sequence[IncomingRecord]) -> None:
        """Bring every record to an end: consumed, put back, dead or rejected.

        :raises DatabaseError: the database is away; nothing, or a first part of the records, is done.
        """
        ordered = sorted(records, key=_place)
        for attempt in range(1, _CONTENTION_LIMIT + 1):
            failed: _HandlingFailed | None = None
            try:
                self._committed(self._in_one_transaction(ordered))
            except _TooMuchAtOnce:
                pass
            except _HandlingFailed as error:
                failed = error
            else:
                return
            # Outside of the except clauses: what other events raise from here on did not happen because of this.
            contended = failed is not None and trouble_behind(failed.cause, self._route.database) is Trouble.CONTENTION
            if contended and attempt < _CONTENTION_LIMIT:
                continue
            if failed is not None and len(ordered) == 1:
                self._blame(failed, contended=contended)
            elif failed is None or contended or not self._without_the_guilty(ordered):
                self._in_halves(ordered)
            return

    def _blame(self, failed: _HandlingFailed, *, contended: bool) -> None:
        """Write down what happened to an event that stood alone."""
        if failed.row is None:
            raise failed.cause from failed.cause.__cause__  # which says whose fault it is
        if contended:
            self._let_wait(failed.row)
        else:
            self._note_failure(failed.row, failed.cause)

    def _without_the_guilty(self, records: list[IncomingRecord]) -> bool:
        """Do what can be done in one transaction, and then the others by themselves; say whether that went well."""
        try:
            outcome = self._in_one_transaction(records, sift=True)
        except (_HandlingFailed, _TooMuchAtOnce):
            return False
        self._committed(outcome)
        for portion in outcome.left:
            # Not at once: what comes behind a guilty event may hold as many more of them.
            self._in_halves(sorted(portion, key=_place))
        return True

    def _in_halves(self, records: list[IncomingRecord]) -> None:
        middle = len(records) // 2
        for half in (records[:middle], records[middle:]):
            if half:
                self.handle(half)

    # --- one transaction -----------------------------------------------------------------------------------------

    def _in_one_transaction(self, records: Sequence[IncomingRecord], *, sift: bool = False) -> Outcome:
        """Do all or nothing; with ``sift``, all but the events whose handlers fail, and what comes behind them."""
        outcome = Outcome()
        messages = self._decode(records, outcome)
        row: Locked | None = None
        began_on: object = None
        try:
            with transaction.atomic(using=self._route.database):
                began_on = connections[self._route.database].connection
                ids = {outbox_id for outbox_id, _ in messages}
                rows = self._repository.lock(list(ids), max_length=self._options.batch_bytes)
                live = self._live(rows, messages, outcome)
                if len(live) > 1 and sum(each.payload_length for each in live) > self._options.batch_bytes:
                    raise _TooMuchAtOnce
                row = live[0] if len(live) == 1 else None
                plan = make_plan(
                    live,
                    self._repository.blockers(live),
                    read=self._read,
                    parks_key=self._parks_key,
                )
                self._put_back(plan, outcome)
                if sift:
                    self._leave_the_guilty(plan, messages, outcome)
                else:
                    self._call(plan.deliver)
                self._bury(plan.bury, outcome)
                self._finish(plan.deliver, outcome)
                self._wake(outcome)
                if outcome.rejected:
                    self._rejections.add(outcome.rejected)
        except _TooMuchAtOnce:
            raise
        except Exception as error:
            raise_if_away(error, self._route.database, began_on=began_on)
            raise _HandlingFailed(row, error) from error
        return outcome

    def _decode(self, records: Sequence[IncomingRecord], outcome: Outcome) -> _Messages:
        messages: _Messages = {}
        for record in records:
            try:
                message = decode_message(record.value)
            except EnvelopeError as error:
                outcome.rejected.append(Rejection(record, str(error)))
                continue
            if message.service_name not in {"", self._route.service}:
                outcome.rejected.append(Rejection(record, f"it belongs to service {message.service_name!r}"))
            else:
                messages.setdefault((message.outbox_id, message.event_type), []).append(record)
        return messages

    def _live(self, rows: Sequence[Locked], messages: _Messages, outcome: Outcome) -> list[Locked]:
        """Return the rows that still have their effect before them; reject records that no row belongs to."""
        found = {row.id: row for row in rows}
        live = []
        for (outbox_id, event_type), records in sorted(messages.items()):
            row = found.get(outbox_id)
            if row is None:
                reason = f"no row {outbox_id} in {self._route.table}: pruned or foreign"
                outcome.rejected += [Rejection(record, reason) for record in records]
            elif row.event_type != event_type or row.event_type in self._repository.foreign_types:
                reason = (
                    f"row {outbox_id} of {self._route.table} is a {row.event_type!r} and not this service's "
                    f"{event_type!r}"
                )
                outcome.rejected += [Rejection(record, reason) for record in records]
            elif row.status not in UNFINISHED or not (row.is_due or row.status == UNFINISHED[1]):
                # Done already; or in its back-off, and an old record of it came early: the relay sends a new one.
                outcome.duplicates += len(records)
            else:
                outcome.duplicates += len(records) - 1
                live.append(row)
        return live

    def _read(self, row: Locked) -> Readable:
        stored = self._repository.payload_of(row.id) if row.payload is None else row.payload
        envelope = decode_envelope(stored, outbox_id=row.id, event_type=row.event_type)
        try:
            contract = self._contracts.get(row.event_type)
        except UnknownEventTypeError as error:
            raise UnreadableError(str(error)) from error
        handler = self._handlers.get(row.event_type)
        if handler is None:
            raise NoHandlerError(f"event type {row.event_type!r} has no handler; declare one with @handles(...)")
        delivery = Delivery(
            outbox_id=row.id,
            event_id=envelope.event_id,
            event_type=row.event_type,
            event_version=envelope.event_version,
            message_key=row.message_key,
            aggregate_id=envelope.aggregate_id,
            payload=contract.decode(envelope.payload, version=envelope.event_version),
            attempt=row.retry_count + 1,
            database=self._route.database,
            traceparent=row.traceparent,
        )
        return Readable(delivery, handler)

    def _put_back(self, plan: Plan, outcome: Outcome) -> None:
        if not plan.wait:
            return
        now = self._repository.now()
        until: dict[datetime, list[int]] = {}
        for row, blocker in plan.wait:
            moment = waits_until(
                blocker,
                now=now,
                shortest=timedelta(milliseconds=self._options.wait_min_ms),
                longest=timedelta(seconds=self._options.wait_max_seconds),
            )
            line = outcome.put_back.setdefault(row.message_key, [])
            moment += self._waiting.patience_of(row.message_key, row.id, in_hand=len(line))
            line.append(row.id)
            until.setdefault(moment, []).append(row.id)
        outcome.waited += self._repository.wait_each(until)
        if self._redeliver_after is not None:
            outcome.redelivered = self._repository.redeliver_lost(lost_before(plan.wait, after=self._redeliver_after))

    def _bury(self, burials: Sequence[Burial], outcome: Outcome) -> None:
        for burial in burials:
            failure = failure_of(burial.error, with_traceback=False)
            self._repository.bury(burial.row.id, failure=failure, parks_key=burial.parks_key)
            outcome.buried.append((burial.row, failure.reason))
            if not burial.parks_key:
                outcome.finished.setdefault(burial.row.message_key, []).append(burial.row.id)

    def _leave_the_guilty(self, plan: Plan, messages: _Messages, outcome: Outcome) -> None:
        """Call the handlers; take out of ``plan`` what they fail by and what comes after it, and leave it for later."""
        sifted = sift(plan.deliver, self._bears)
        plan.deliver = sifted.good
        portions = [[(each.delivery.outbox_id, each.delivery.event_type)] for each in sifted.guilty]
        behind = [(each.delivery.outbox_id, each.delivery.event_type) for each in sifted.behind]
        for burial in list(plan.bury):
            if sifted.is_behind(burial.row.message_key, burial.row.id):
                plan.bury.remove(burial)
                behind.append((burial.row.id, burial.row.event_type))
        outcome.left = [[messages[row][0] for row in portion] for portion in (*portions, behind) if portion]

    def _bears(self, readables: Sequence[Readable]) -> bool:
        """Call the handlers; undo what they did and say so when they fail by a fault of their own or of an event."""
        database = connections[self._route.database]
        try:
            with transaction.atomic(using=self._route.database):
                self._call(readables)
        except Exception as error:
            is_lost = database.needs_rollback or database.closed_in_transaction
            if is_lost or trouble_behind(error, self._route.database) is not Trouble.STATEMENT:
                raise
            return False
        return True

    def _call(self, readables: Sequence[Readable]) -> None:
        database = connections[self._route.database]
        watch = RolledBackWatch()
        try:
            with database.execute_wrapper(watch):
                call_handlers(readables)
        except Exception as error:
            if database.closed_in_transaction:
                watch.check()
                if isinstance(error, (DatabaseError, InterfaceError)):
                    raise ClosedConnectionError  # noqa: B904 - what it comes from looks like an outage, and is none
            raise
        watch.check()
        if database.closed_in_transaction:
            raise ClosedConnectionError

    def _finish(self, readables: Sequence[Readable], outcome: Outcome) -> None:
        ids = [readable.delivery.outbox_id for readable in readables]
        if self._repository.mark_consumed(ids) != len(ids):
            raise LostRowError(f"rows of {self._route.table} changed while they were locked: {ids[:10]}")
        outcome.consumed.update(readable.delivery.event_type for readable in readables)
        for readable in readables:
            outcome.finished.setdefault(readable.delivery.message_key, []).append(readable.delivery.outbox_id)

    def _wake(self, outcome: Outcome) -> None:
        """Make those due that waited for what is finished, unless events of their key in hand still have to wait."""
        count = 0
        for key, gone in outcome.finished.items():
            ids = [] if key in outcome.put_back else self._waiting.next_of(key, besides=gone)
            if ids and count < _WOKEN_AT_ONCE:
                outcome.woken[key] = ids
                count += len(ids)
        if outcome.woken:
            self._repository.wake([row_id for ids in outcome.woken.values() for row_id in ids])

    # --- what fails ----------------------------------------------------------------------------------------------

    def _note_failure(self, row: Locked, error: Exception) -> None:
        """Have one event come again, or make it dead; a failure of the database itself goes up."""
        attempt = row.retry_count + 1
        failure = failure_of(error)
        if isinstance(error, Discard) or attempt >= row.max_retry:
            parks_key = self._parks_key(row.event_type)
            woken = [] if parks_key else self._waiting.next_of(row.message_key, besides=[row.id])
            with transaction.atomic(using=self._route.database):
                buried = self._repository.bury_failed(row, failure=failure, parks_key=parks_key)
                if buried and woken:
                    self._repository.wake(woken)
            if buried:
                self._waiting.finished(row.message_key, gone=[row.id], woken=woken)
                if woken:
                    self._wake_relays()
                self._news.tell_dead(row, failure.reason)
            return
        pause = error.after if isinstance(error, Retry) else None
        if pause is None:
            pause = delay(attempt, self._retry_policy(row.event_type), self._rand())
        pause = min(pause, _LONGEST_PAUSE)
        with transaction.atomic(using=self._route.database):
            noted = self._repository.retry(row, due_at=self._repository.now() + pause, failure=failure)
        if not noted:
            return  # somebody else moved it meanwhile, or it failed behind its commit
        self._news.tell_retried(row, pause, error=error, reason=failure.reason)

    def _let_wait(self, row: Locked) -> None:
        """Put off an event that somebody else's locks are in the way of; it is not its fault and costs no attempt."""
        with transaction.atomic(using=self._route.database):
            until = self._repository.now() + timedelta(seconds=1 + self._rand())
            self.totals.waited += self._repository.wait([row.id], until=until)

    # --- what was committed --------------------------------------------------------------------------------------

    def _committed(self, outcome: Outcome) -> None:
        """Remember who waits for whom, and tell the world."""
        for key, gone in outcome.finished.items():
            self._waiting.finished(key, gone=gone, woken=outcome.woken.get(key, []))
        for key, ids in outcome.put_back.items():
            self._waiting.put_back(key, ids)
        if outcome.woken or outcome.redelivered:
            self._wake_relays()
        self._news.tell(outcome)


def _place(record: IncomingRecord) -> tuple[int, int]:
    return record.partition, record.offset
