"""One transaction of a consumer: lock, plan, run the handlers, prove their effects, mark, commit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError
from msgspec.structs import replace

from outbox.brokers.base import IncomingRecord
from outbox.conf import ConsumerOptions
from outbox.consumer.call_failures import CallFailedError, Deliveries
from outbox.consumer.isolation import HandlerCalls, LockBudget
from outbox.consumer.late_connections import throw_away
from outbox.consumer.outcomes import Outcome
from outbox.consumer.planning import Plan, make_plan
from outbox.consumer.portions import Portion, Way, each_alone, halves, whole
from outbox.consumer.reading import EventIds, Messages, RowReader, decode_records
from outbox.consumer.watchdog import Watchdog
from outbox.consumer.writing import PlanWriter
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.coordination.heartbeat import Witness
from outbox.exceptions import LostRowError, UndoneEffectsError
from outbox.lifecycle import UNFINISHED
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import RejectionStore
from outbox.storage.rows import Identity, Locked
from outbox.storage.sessions import own_transaction


@dataclass(frozen=True, slots=True)
class Tools:
    """What the transactions of one service's consumer work with."""

    repository: ConsumerRows
    rejections: RejectionStore
    reader: RowReader
    writer: PlanWriter
    options: ConsumerOptions
    parks_key: Callable[[str], bool]
    watchdog: Watchdog
    time_limit: Callable[[str], timedelta]
    witness: Witness
    clock: Callable[[], float]
    back_off: Callable[[Locked], timedelta]


class TooMuchAtOnce(Exception):  # noqa: N818 - not an error: the batch is cut
    """Private to the consumer. The payloads of the batch are more than one transaction should hold."""


class TransactionFailedError(Exception):
    """Private to the consumer. A transaction came to nothing; ``call`` is the handler's call that it failed by.

    ``is_handlers_doing``: a handler undid the transaction or moved its row, and which one shows when each is alone.
    """

    def __init__(
        self, error: Exception, kind: ErrorKind, *, call: CallFailedError | None = None, is_handlers_doing: bool = False
    ) -> None:
        super().__init__(type(error).__name__)
        self.error, self.kind, self.call, self.is_handlers_doing = error, kind, call, is_handlers_doing

    @property
    def is_lock_wait(self) -> bool:
        return self.call is not None and self.call.is_lock_wait


@dataclass(slots=True)
class BatchTransaction:
    """One portion's transaction, and what is known of it, also after it failed."""

    tools: Tools
    portion: Portion
    locks: LockBudget
    is_young: Callable[[IncomingRecord], bool]
    on_hung: Callable[[Deliveries], None]
    outcome: Outcome = field(default_factory=Outcome)
    messages: Messages = field(default_factory=dict)
    event_ids: EventIds = field(default_factory=dict)
    live: list[Locked] = field(default_factory=list)
    _locked: dict[int, Identity] = field(default_factory=dict)
    _token: object | None = None
    _calls_are_over: bool = False
    _is_committing: bool = False

    # --- what others ask of it -----------------------------------------------------------------------------------

    def records_of(self, rows: Collection[int]) -> list[IncomingRecord]:
        """Return the first record of each of these rows, in the order of their ids."""
        first = {row_id: records[0] for (row_id, _type), records in self.messages.items() if row_id in rows}
        return [first[row_id] for row_id in sorted(first)]

    def behind(self, deliveries: Deliveries) -> set[int]:
        """Return the rows that come after one of ``deliveries`` in the order of their keys."""
        oldest: dict[str, int] = {}
        for each in deliveries:
            oldest[each.message_key] = min(each.outbox_id, oldest.get(each.message_key, each.outbox_id))
        return {row.id for row in self.live if row.id > oldest.get(row.message_key, row.id)}

    def payload_lengths(self) -> dict[tuple[int, int], int]:
        """Return the bytes of the payloads that are to be handled, by their records' partition and offset."""
        return {
            (record.partition, record.offset): row.payload_length
            for row in self.live
            for record in self.messages[(row.id, row.event_type)]
        }

    @property
    def row(self) -> Locked | None:
        """Return the row of a portion of one event; None where it was not locked or is done."""
        return self.live[0] if len(self.live) == 1 else None

    def connection_lived_on_elsewhere(self) -> bool:
        """Say whether the witness's connection outlived that of this transaction."""
        return self.tools.witness.lived_on(self._token)

    def database_was_silent(self) -> bool:
        """Say whether the witness had a connection when the transaction began, and has lost it."""
        return self._token is not None and not self.tools.witness.lived_on(self._token)

    # --- the transaction -----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do all of the portion that can be done in one transaction, and return what was done.

        :raises TooMuchAtOnce: cut the portion.
        :raises TransactionFailedError: nothing was done.
        """
        route = self.tools.repository.route
        using = route.database
        self._token = self.tools.witness.token()
        decoded = decode_records(self.portion.records, service=route.service)
        self.messages, self.event_ids, self.outcome.rejected = decoded
        try:
            with own_transaction(using):
                is_outermost = len(connections[using].savepoint_ids) == 0
                self._fill(is_outermost)
                self._is_committing = True
            if is_outermost and connections[using].in_atomic_block:  # a block was left open: this was no commit
                throw_away([connections[using]], depths={})
                raise UndoneEffectsError.ended()
        except TooMuchAtOnce:
            raise
        except CallFailedError as failed:
            raise TransactionFailedError(failed.error, failed.kind, call=failed) from failed
        except UndoneEffectsError as error:
            raise TransactionFailedError(error, ErrorKind.PERMANENT, is_handlers_doing=True) from error
        except Exception as error:
            kind = kind_of(error, using) if isinstance(error, (DatabaseError, InterfaceError)) else ErrorKind.PERMANENT
            is_theirs = isinstance(error, LostRowError) or (self._is_committing and kind is ErrorKind.PERMANENT)
            raise TransactionFailedError(error, kind, is_handlers_doing=is_theirs and self._calls_are_over) from error
        return self.outcome

    def _fill(self, is_outermost: bool) -> None:
        tools, outcome = self.tools, self.outcome
        self.live = self._find_live(self._lock())
        self._fetch_long_payloads()
        self._set_suspects_aside()
        plan = make_plan(
            self.live,
            tools.repository.blockers(self.live),
            read=partial(tools.reader.read, is_announced=self.portion.announced is not None),
            parks_key=tools.parks_key,
        )
        tools.writer.defer_blocked(plan, outcome)
        if self.portion.way in (Way.SUSPECT, Way.ANNOUNCED):
            self._announce(plan)
        else:
            self._run_handlers(plan, is_outermost)
        tools.writer.bury(plan.bury, outcome)
        tools.writer.finish(plan.deliver, outcome)
        tools.writer.wake(outcome)
        if outcome.rejected:
            tools.rejections.add(outcome.rejected)

    # --- which rows ----------------------------------------------------------------------------------------------

    def _lock(self) -> dict[int, Locked]:
        ids = {row_id for row_id, _ in self.messages}
        # What is sure to fit comes along; of the others the lengths come first.
        share = self.tools.options.batch_bytes // max(len(ids), 1)
        found = {row.id: row for row in self.tools.repository.lock(list(ids), max_length=share)}
        if len(found) < len(ids):
            self._set_locked_aside(ids - found.keys(), found)
        return found

    def _fetch_long_payloads(self) -> None:
        """Fetch the payloads that were longer than their share; that of an event alone is read when its turn comes.

        :raises TooMuchAtOnce: all payloads together are more than one transaction should hold.
        """
        if len(self.live) < 2:
            return
        if sum(row.payload_length for row in self.live) > self.tools.options.batch_bytes:
            raise TooMuchAtOnce
        long = self.tools.repository.payloads_of([row.id for row in self.live if row.payload is None])
        self.live = [replace(row, payload=long[row.id]) if row.id in long else row for row in self.live]

    def _set_locked_aside(self, missing: set[int], found: dict[int, Locked]) -> None:
        """Leave out what others have locked; what is of no such row is rejected by ``_find_live``."""
        blocked_by: dict[str, int] = {}
        self._locked = self.tools.repository.existing(missing)
        for row_id, locked in self._locked.items():
            named, key = (row_id, locked.event_type), locked.message_key
            if named not in self.messages:
                continue  # another's record with this row's id
            own, others = self.tools.reader.match(locked, named, self.messages.pop(named), self.event_ids[named])
            self.outcome.rejected += others
            self.outcome.locked += own
            if any(map(self.is_young, own)):
                blocked_by[key] = min(row_id, blocked_by.get(key, row_id))
        for row in list(found.values()):
            if row.id > blocked_by.get(row.message_key, row.id):
                self.outcome.locked += self.messages.pop((row.id, row.event_type), [])

    def _find_live(self, found: dict[int, Locked]) -> list[Locked]:
        """Return the rows that still have their effect before them; reject records that no row belongs to."""
        live, outcome, reader = list[Locked](), self.outcome, self.tools.reader
        matched: Messages = {}  # a record that is not of its row must not be tried again in that row's name
        for named, records in sorted(self.messages.items()):
            row = found.get(named[0])
            own, others = reader.match(row or self._locked.get(named[0]), named, records, self.event_ids[named])
            outcome.rejected += others
            if row is None or not own:
                continue
            if not self._is_live(row):
                # Done already; or in its back-off, and an old record of it came early: the relay sends a new one.
                outcome.duplicates += len(own)
            else:
                outcome.duplicates += len(own) - 1
                live.append(row)
                matched[named] = own
        self.messages = matched
        return live

    def _is_live(self, row: Locked) -> bool:
        if self.portion.announced is not None:
            return row.status in UNFINISHED and row.counts == self.portion.announced.counts
        return row.status in UNFINISHED and (row.is_due or row.status == UNFINISHED[1])

    def _set_suspects_aside(self) -> None:
        """Leave rows that were interrupted before, and what follows them in their keys, to the end of the batch."""
        if self.portion.way is Way.ANNOUNCED or self.portion.announced is not None:
            return
        suspects = [row for row in self.live if row.interruptions]
        if not suspects:
            return
        oldest: dict[str, int] = {}
        for row in suspects:
            oldest.setdefault(row.message_key, row.id)
        aside = {row.id for row in self.live if row.id >= oldest.get(row.message_key, row.id + 1)}
        self.live = [row for row in self.live if row.id not in aside]
        suspect_ids = {row.id for row in suspects}
        self.outcome.left += [Portion([record], Way.ANNOUNCED, is_last=True) for record in self.records_of(suspect_ids)]
        self.outcome.left += whole(self.records_of(aside - suspect_ids), is_last=True)

    # --- the handlers --------------------------------------------------------------------------------------------

    def _announce(self, plan: Plan) -> None:
        """Count an interruption of the row before it is tried: when that ends the process, nobody else can."""
        repository = self.tools.repository
        for readable in plan.deliver:
            row = next(row for row in self.live if row.id == readable.delivery.outbox_id)
            if repository.interrupt(row, due_at=repository.now() + self.tools.back_off(row)):
                self.outcome.announced = row
        plan.deliver = []

    def _run_handlers(self, plan: Plan, is_outermost: bool) -> None:
        tools = self.tools
        calls = HandlerCalls(
            tools.repository.route.database,
            watchdog=tools.watchdog,
            time_limit=tools.time_limit,
            clock=tools.clock,
            budget=timedelta(seconds=tools.options.transaction_seconds),
            locks=self.locks,
            guards_hooks=is_outermost,
            on_hung=self.on_hung,
        )
        ran = calls.run(plan.deliver, in_savepoints=self.portion.way is Way.IN_SAVEPOINTS)
        self._calls_are_over = bool(plan.deliver)
        left = ran.left()
        if not left:
            return
        plan.deliver = [each for each in plan.deliver if each.delivery.outbox_id not in left]
        tools.writer.defer_contended(ran.contended, self.outcome)
        after = self.behind([*ran.failed, *ran.undecided, *ran.not_begun, *ran.contended])
        dead_later = {each.row.id for each in plan.bury if each.row.id in after}
        plan.bury = [each for each in plan.bury if each.row.id not in dead_later]
        # What a list named, or could not be bisected in time, may lie behind what has not had its turn.
        not_yet = self.behind([*ran.not_begun, *ran.contended])
        alone = {each.outbox_id for each in (*ran.failed, *ran.undecided)} - not_yet
        again = (left - alone - {each.outbox_id for each in ran.contended}) | dead_later
        self.outcome.left += each_alone(self.records_of(alone))
        self.outcome.left += halves(self.records_of(again)) if ran.failed else whole(self.records_of(again))
