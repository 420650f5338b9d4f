"""The relay: carries rows that are due from a service's table to its topic.

Claim, send, wait for the acknowledgements, mark. No transaction is open while the broker is talked to: a lease says who
relays which shard of keys, and the mark changes only rows that are still as they were claimed. What happens in between
can send a row twice, never lose one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db.utils import DatabaseError, InterfaceError

from outbox.brokers.base import Broker
from outbox.conf import RelayOptions
from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.heartbeat import Heartbeat, NullHeartbeat
from outbox.coordination.leases import ShardLeases
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import WakeUpSocket
from outbox.coordination.worker_loop import WorkerLoop
from outbox.exceptions import BrokerUnavailableError
from outbox.fields import SHARD_COUNT
from outbox.log_text import get_logger
from outbox.relay.confirmations import Hand, OwnHand
from outbox.relay.in_flight import InFlightBatches, RelayTotals
from outbox.relay.lost_records import LostRecords
from outbox.relay.pauses import IdlePauses
from outbox.storage.relay_rows import UNBOUNDED, RelayRows

logger = get_logger(__name__)


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
        self._leases = leases
        self._heartbeat = heartbeat or NullHeartbeat()
        self._options = options
        self._reference_bytes = reference_bytes if self._route.whole_payload_bytes is None else UNBOUNDED
        self._clock = clock
        self._lost = LostRecords(repository, broker, options, clock=clock)
        self._in_flight = InFlightBatches(
            repository,
            broker,
            options,
            client_id=client_id,
            parks_key=parks_key,
            hand=hand or OwnHand(),
            totals=self.totals,
            on_answer=self._heartbeat.moved,
        )
        self._after: tuple[Any, int] | None = None
        self._swept_at = clock()
        self._backoff = ConnectionBackoff(self._route.service, "relay")
        self._pauses = IdlePauses(
            shortest=timedelta(milliseconds=options.poll_interval_ms),
            longest=timedelta(milliseconds=options.max_poll_interval_ms),
            open_wake_ups=wake_ups,
        )

    def run(self, stop: StopFlag, *, once: bool = False) -> RelayTotals:
        """Work until ``stop`` is set; with ``once``, until nothing more is due.

        :raises Exception: a fault, with ``once``; see ``WorkerLoop``.
        """
        try:
            self._pauses.open()
            self._heartbeat.start()
            self.loop(once=once).run(stop)
            self._drain_quietly()
        finally:
            self._close()
        return self.totals

    def loop(self, *, once: bool = False) -> WorkerLoop:
        """Return the loop of this relay's steps, which ``run`` runs between opening and closing what they need."""
        return WorkerLoop(
            step=self.step,
            using=self._route.database,
            backoff=self._backoff,
            pause=self._pauses.after,
            rest=self._pauses.rest,
            recover=self._recover,
            note_progress=self._heartbeat.moved,
            unproven=lambda: () if self._in_flight.broker_answers else ("broker",),
            is_drained=self._is_drained if once else None,
        )

    def step(self) -> bool:
        """Do the next piece of work; say whether there was any.

        :raises BrokerUnavailableError: the broker is away.
        :raises DatabaseError: the database is away.
        """
        if self._leases.due:
            self._in_flight.settle_all()
            self._heartbeat.ensure_beaten()
            self._leases.refresh()
            self._in_flight.prepare()
        if not self._leases.held or self._heartbeat.switches.relay_paused:
            self._in_flight.settle_all()
            return False
        if self._clock() - self._swept_at >= self._options.sweep_interval_seconds:
            self._start_over()
        self._in_flight.settle_down_to(self._options.in_flight_batches - 1)
        if self._leases.due:
            return True  # the broker was slow: look at the leases before claiming more
        redelivered = self._lost.send_again(self._shards())
        self.totals.redelivered += redelivered
        return self._send_next() or redelivered > 0

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send_next(self) -> bool:
        if self._after is None:
            self._in_flight.unmarked.finish()  # or what is about to be marked would be found again
        claim = self._repository.claim(
            shards=self._shards(),
            limit=self._options.batch_size,
            max_length=self._reference_bytes,
            max_bytes=self._options.batch_bytes,
            after=self._after,
        )
        had_work = len(self._in_flight) > 0 or self._after is not None
        had_work = self._in_flight.send(claim) or had_work
        self._after = claim.last
        if claim.last is None or not (claim.is_cut or len(claim.rows) == self._options.batch_size):
            self._start_over()
            return had_work
        return True

    def _start_over(self) -> None:
        """Claim from the oldest row next; nothing may be in flight then, or it would be claimed again."""
        self._in_flight.settle_all()
        self._after = None
        self._swept_at = self._clock()

    def _drain_quietly(self) -> None:
        """Mark what was acknowledged before the process ends; what cannot be marked is sent again by the next one."""
        try:
            self._in_flight.settle_all()
        except (BrokerUnavailableError, DatabaseError, InterfaceError) as error:
            logger.warning("relay of %s: ended with rows unmarked; they go out again: %s", self._route.service, error)

    def _recover(self, error: Exception) -> None:
        """Have everything that was not settled claimed and sent again."""
        self._in_flight.discard()
        self._after = None
        if isinstance(error, BrokerUnavailableError):
            self._in_flight.broker_answers = False
            return
        self._leases.forget()
        if not isinstance(error, (DatabaseError, InterfaceError)):
            self._in_flight.close_producer()  # a client that is in no known state

    def _is_drained(self) -> bool:
        """Say whether nothing is due in any shard: also what a crashed relay held until its lease runs out."""
        if self._heartbeat.switches.relay_paused:
            return True
        unmarked = self._in_flight.unmarked
        due = self._repository.claim(shards=None, limit=len(unmarked) + 1, max_length=0).rows
        return all(row.id in unmarked for row in due)

    def _shards(self) -> frozenset[int] | None:
        return None if len(self._leases.held) == SHARD_COUNT else self._leases.held

    def _close(self) -> None:
        self._heartbeat.close(deregister=False)
        try:
            self._leases.release()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("relay of %s: leases run out by themselves: %s", self._route.service, error)
        self._in_flight.close()
        self._pauses.close()
