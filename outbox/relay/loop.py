"""The relay: carries rows that are due from a service's table to its topic.

Claim, send, wait for the acknowledgements, mark. No transaction is open while the broker is talked to: a lease says who
relays which shard of keys, and the mark changes only rows that are still as they were claimed. What happens in between
can send a row twice, never lose one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.utils import DatabaseError, InterfaceError

from outbox import signals
from outbox.brokers.base import Broker, OutgoingRecord, PendingSend, Producer
from outbox.conf import RelayOptions
from outbox.coordination.connection_backoff import ConnectionBackoff, is_fault
from outbox.coordination.heartbeat import Heartbeat, NullHeartbeat
from outbox.coordination.leases import ShardLeases
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import WakeUpSocket
from outbox.exceptions import BrokerUnavailableError, EnvelopeError
from outbox.fields import SHARD_COUNT
from outbox.log_text import get_logger
from outbox.relay.confirmations import Hand, OwnHand, PublishedMarks
from outbox.relay.lost_records import LostRecords
from outbox.relay.outgoing import OutgoingRecords
from outbox.relay.pauses import IdlePauses
from outbox.relay.redelivery import pause_before_redelivery
from outbox.storage.dialects import from_db
from outbox.storage.relay_rows import UNBOUNDED, RelayRows
from outbox.storage.rows import Counts, Due, Failure

logger = get_logger(__name__)


@dataclass(slots=True)
class RelayTotals:
    """What a relay has done since it started."""

    published: int = 0
    dead: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A batch that the broker has not answered for."""

    send: PendingSend
    event_types: dict[int, str]
    claimed_at: Any
    pauses: dict[int, timedelta]
    """How long those rows may stay published that are sent again."""
    counts: Counts
    """Of those rows that were put back before the claim."""


class Relay:
    """One service's relay; an object that a test can hold: broker, leases and clock are passed in.

    ``parks_key`` says whether the death of an event type holds back its key. ``reference_bytes``: a payload
    column longer than this stays in its row, its record says where it is, unless payloads of the service travel whole.
    ``hand`` does the marking; ``wake_ups`` opens what ends a pause early.
    """

    def __init__(
        self,
        *,
        repository: RelayRows,
        broker: Broker,
        client_id: str,
        leases: ShardLeases,
        parks_key: Callable[[str], bool],
        options: RelayOptions,
        reference_bytes: int,
        clock: Callable[[], float],
        hand: Hand | None = None,
        heartbeat: Heartbeat | NullHeartbeat | None = None,
        wake_ups: Callable[[], WakeUpSocket | None] = lambda: None,
    ) -> None:
        self.totals = RelayTotals()
        self._repository = repository
        self._route = repository.route
        self._outgoing = OutgoingRecords(repository)
        self._lost = LostRecords(repository, broker, options, clock=clock)
        self._broker = broker
        self._client_id = client_id
        self._leases = leases
        self._heartbeat = heartbeat or NullHeartbeat()
        self._parks_key = parks_key
        self._options = options
        self._reference_bytes = reference_bytes if self._route.whole_payload_bytes is None else UNBOUNDED
        self._clock = clock
        self._producer: Producer | None = None
        self._redeliver_after = timedelta(seconds=options.redeliver_after_seconds)
        self._marks = PublishedMarks(repository, redeliver_after=self._redeliver_after, hand=hand or OwnHand())
        self._in_flight: deque[_InFlight] = deque()
        self._after: tuple[Any, int] | None = None
        self._swept_at = clock()
        self._broker_answers = True
        """It has answered a batch since it was away last: that it takes one says nothing."""
        self._backoff = ConnectionBackoff(self._route.service, "relay")
        self._pauses = IdlePauses(
            shortest=timedelta(milliseconds=options.poll_interval_ms),
            longest=timedelta(milliseconds=options.max_poll_interval_ms),
            open_wake_ups=wake_ups,
        )

    def run(self, stop: StopFlag, *, once: bool = False) -> RelayTotals:
        """Work until ``stop`` is set; with ``once``, until nothing more is due.

        An outage only makes it wait. So does a fault of its own, a missing table or a bug, but for ``once``: a person
        sees it then. Whoever serves for ever goes on by itself when it is mended.
        """
        try:
            self._pauses.open()
            self._heartbeat.start()
            while not stop.is_set:
                pause = self._try_step(once=once)
                if pause is not None and pause.is_last:
                    break
                if pause is not None:
                    self._pauses.rest(pause.length, stop, is_outage=pause.outage)
            self._drain_quietly()
        finally:
            self._close()
        return self.totals

    def step(self) -> bool:
        """Do the next piece of work; say whether there was any.

        :raises BrokerUnavailableError: the broker is away.
        :raises DatabaseError: the database is away.
        """
        if self._leases.due:
            self._settle_all()
            self._leases.refresh()
            self._outgoing.prepare()
        if not self._leases.held or self._leases.switches.relay_paused:
            self._settle_all()
            return False
        if self._clock() - self._swept_at >= self._options.sweep_interval_seconds:
            self._start_over()
        while len(self._in_flight) >= self._options.in_flight_batches:
            self._settle(self._in_flight.popleft())
        if self._leases.due:
            return True  # the broker was slow: look at the leases before claiming more
        redelivered = self._lost.send_again(self._shards())
        self.totals.redelivered += redelivered
        return self._send_next() or redelivered > 0

    # --- one batch -----------------------------------------------------------------------------------------------

    def _send_next(self) -> bool:
        if self._after is None:
            self._marks.finish()  # or what they are about to mark would be found again
        claim = self._repository.claim(
            shards=self._shards(),
            limit=self._options.batch_size,
            max_length=self._reference_bytes,
            max_bytes=self._options.batch_bytes,
            after=self._after,
        )
        rows = [row for row in claim.rows if row.id not in self._marks]
        had_work = bool(rows or self._in_flight or self._after is not None)
        records = self._records(rows, claim.claimed_at)
        if records:
            self._in_flight.append(
                _InFlight(
                    self._open_producer().send(records),
                    {row.id: row.event_type for row in rows},
                    claim.claimed_at,
                    {
                        row.id: pause_before_redelivery(row.published_for, first=self._redeliver_after)
                        for row in rows
                        if row.published_for is not None
                    },
                    claim.counts,
                )
            )
        self._after = claim.last
        if claim.last is None or not (claim.is_cut or len(claim.rows) == self._options.batch_size):
            self._start_over()
            return had_work
        return True

    def _records(self, rows: Sequence[Due], claimed_at: Any) -> list[OutgoingRecord]:
        """Encode ``rows``; those that cannot be read die here, with the reason."""
        records = []
        sent_at = from_db(claimed_at) if rows else None
        for row in rows:
            try:
                records.append(self._outgoing.of(row, sent_at))
            except EnvelopeError as error:
                failure = Failure(f"EnvelopeError: {error}", "EnvelopeError")
                self._bury(row.id, row.event_type, failure, claimed_at, {row.id: row.counts})
        return records

    def _settle(self, batch: _InFlight) -> None:
        """Wait for the broker's answers and write them down.

        :raises BrokerUnavailableError: some records have no answer; they stay pending and are sent again.
        """
        report = batch.send.report(timedelta(seconds=self._options.send_timeout_seconds))
        self._heartbeat.moved()
        self._broker_answers = self._broker_answers or bool(report.acknowledged or report.refused)
        self._marks.add(report.acknowledged, claimed_at=batch.claimed_at, pauses=batch.pauses, counts=batch.counts)
        # Counted by the broker's word: a fast consumer may have finished a row before it is marked.
        self.totals.published += len(report.acknowledged)
        for refusal in report.refused:
            self._bury(
                refusal.outbox_id,
                batch.event_types[refusal.outbox_id],
                Failure(f"the broker refused the record: {refusal.reason}", "RecordRefused"),
                batch.claimed_at,
                batch.counts,
            )
        if report.acknowledged:
            signals.relayed.send_robust(self._route.service, count=len(report.acknowledged))
        if report.unanswered:
            raise BrokerUnavailableError(report.outage)

    def _bury(
        self,
        row_id: int,
        event_type: str,
        failure: Failure,
        claimed_at: Any,
        counts: Counts,
    ) -> None:
        """Make a row dead; one that a consumer holds, by an older record of it, is left to the next claim."""
        parks_key = self._parks_key(event_type)
        if self._repository.bury_refused(
            row_id, failure=failure, parks_key=parks_key, claimed_at=claimed_at, counts=counts
        ):
            self.totals.dead += 1
            logger.error("relay of %s: row %s is dead: %s", self._route.service, row_id, failure.reason)
            signals.refused.send_robust(self._route.service, outbox_id=row_id, reason=failure.reason)

    # --- what is in flight ---------------------------------------------------------------------------------------

    def _settle_all(self) -> None:
        while self._in_flight:
            self._settle(self._in_flight.popleft())
        self._marks.try_again()

    def _start_over(self) -> None:
        """Claim from the oldest row next; nothing may be in flight then, or it would be claimed again."""
        self._settle_all()
        self._after = None
        self._swept_at = self._clock()

    def _drain_quietly(self) -> None:
        """Mark what was acknowledged before the process ends; what cannot be marked is sent again by the next one."""
        try:
            self._settle_all()
        except (BrokerUnavailableError, DatabaseError, InterfaceError) as error:
            logger.warning("relay of %s: ended with rows unmarked; they go out again: %s", self._route.service, error)

    # --- the loop ------------------------------------------------------------------------------------------------

    def _try_step(self, *, once: bool) -> _Pause | None:
        """Take one step; return how long to pause, None for going on at once."""
        self._heartbeat.moved()
        try:
            worked = self.step()
            is_last = once and not worked and self._is_drained()
        except Exception as error:
            if once and is_fault(error, self._route.database):
                raise
            return _Pause(self._recover(error), outage=True)
        self._backoff.record_success(besides=() if self._broker_answers else ("broker",))
        if worked:
            self._pauses.start_over()
            return None
        return _Pause(self._pauses.take(), is_last=is_last)

    def _recover(self, error: Exception) -> timedelta:
        """Have everything that was not settled claimed and sent again; return how long to pause before."""
        self._in_flight.clear()
        self._after = None
        if isinstance(error, BrokerUnavailableError):
            self._broker_answers = False
        else:
            self._leases.forget()
            if not isinstance(error, (DatabaseError, InterfaceError)):
                self._close_producer()  # a client that is in no known state
        return self._backoff.record(error, using=self._route.database)

    def _is_drained(self) -> bool:
        """Say whether nothing is due in any shard: also what a crashed relay held until its lease runs out."""
        if self._leases.switches.relay_paused:
            return True
        due = self._repository.claim(shards=None, limit=len(self._marks) + 1, max_length=0).rows
        return all(row.id in self._marks for row in due)

    def _shards(self) -> frozenset[int] | None:
        return None if len(self._leases.held) == SHARD_COUNT else self._leases.held

    def _open_producer(self) -> Producer:
        if self._producer is None:
            self._producer = self._broker.producer(client_id=self._client_id)
        return self._producer

    def _close(self) -> None:
        self._heartbeat.close(deregister=False)
        try:
            self._leases.release()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("relay of %s: leases run out by themselves: %s", self._route.service, error)
        self._marks.close()
        self._pauses.close()
        self._close_producer()

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.close()
        except Exception:  # what it meets with must not end the relay, which goes on with another one
            logger.warning("relay of %s: its producer could not be closed", self._route.service, exc_info=True)


@dataclass(frozen=True, slots=True)
class _Pause:
    length: timedelta
    outage: bool = False
    is_last: bool = False
