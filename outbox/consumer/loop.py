"""The consumer: receives records, has them handled, and commits their offsets behind the database's commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from django.db.utils import DatabaseError, InterfaceError

from outbox.brokers.base import IncomingRecord, Subscription
from outbox.conf import ConsumerOptions
from outbox.consumer.held import HeldRecords
from outbox.consumer.other_installations import OtherInstallations
from outbox.consumer.processing import BatchProcessor
from outbox.consumer.report import ConsumerTotals
from outbox.consumer.takeovers import Takeovers
from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.heartbeat import Heartbeat, NullHeartbeat
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.worker_loop import WorkerLoop
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError
from outbox.log_text import get_logger
from outbox.storage.pause_flags import Switches
from outbox.storage.sessions import close_if_idle

logger = get_logger(__name__)

_HELD_BATCHES = 4
"""So many batches of records may be held, whose rows others have locked, before no more are received."""


class Consumer:
    """One service's consumer; an object that a test can hold: processor, subscription and clock are passed in."""

    def __init__(
        self,
        *,
        route: ServiceRoute,
        processor: BatchProcessor,
        subscribe: Callable[[], Subscription],
        options: ConsumerOptions,
        heartbeat: Heartbeat | NullHeartbeat,
        takeovers: Takeovers,
        clock: Callable[[], float],
    ) -> None:
        self._route = route
        self._processor = processor
        self._subscribe = subscribe
        self._subscription: Subscription | None = None
        self._options = options
        self._heartbeat = heartbeat
        self._takeovers = takeovers
        self._others = OtherInstallations(route, clock=clock)
        self._held = HeldRecords(limit=_HELD_BATCHES * options.batch_size, clock=clock)
        self._in_hand: list[IncomingRecord] = []
        """Received and not brought to an end: an outage came in between."""
        self._assignments: dict[int, int] = {}
        self._backoff = ConnectionBackoff(route.service, "consumer")

    @property
    def totals(self) -> ConsumerTotals:
        """Return what has been done so far."""
        return self._processor.totals

    @property
    def _switches(self) -> Switches:
        return self._heartbeat.switches

    def run(
        self, stop: StopFlag, *, max_events: int | None = None, is_drained: Callable[[], bool] | None = None
    ) -> ConsumerTotals:
        """Work until ``stop`` is set, ``max_events`` are handled, or nothing came and ``is_drained`` says so.

        With ``is_drained`` it also ends when the consumer is paused: nothing will come. What is in flight when the
        database or the broker becomes unavailable is kept and handled again.

        :raises Exception: a fault, where an end is set; see ``WorkerLoop``.
        """

        def step() -> bool:
            left = self._options.batch_size if max_events is None else max_events - self.totals.handled
            return self.step(min(left, self._options.batch_size))

        loop = WorkerLoop(
            step=step,
            using=self._route.database,
            backoff=self._backoff,
            pause=self._pause,
            recover=self._recover,
            note_progress=self._heartbeat.moved,
            is_complete=None if max_events is None else lambda: self.totals.handled >= max_events,
            is_drained=None if is_drained is None else lambda: self._is_drained(is_drained),
        )
        try:
            self._heartbeat.start()
            loop.run(stop)
        finally:
            self._close()
        return self.totals

    def step(self, limit: int) -> bool:
        """Receive up to ``limit`` records, handle and commit them; say whether any came to an end.

        :raises BrokerUnavailableError: the broker is away; records in hand are kept.
        :raises LostSubscriptionError: subscribe again; what was not committed comes again.
        :raises DatabaseError: the database is away; records in hand are kept.
        """
        if self._switches.consumer_paused and not self._in_hand and not self._held:
            return False
        self._receive(limit)
        self._look_at_assignments()
        batch = [*self._held.due(), *self._in_hand]
        if not batch:
            return False
        close_if_idle()
        still = self.handle(batch)
        self._in_hand = []
        done = self._held.settle(batch, still)
        if done:
            # Should this fail, the records come again and are found to be done.
            self._open().commit(done)
            self._takeovers.passed(done)
        return bool(done)

    def handle(self, records: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        """Bring every record to an end, without the broker's knowledge: see ``BatchProcessor.process``."""
        own = self._others.set_aside(records)
        self.totals.rejected += len(records) - len(own)
        is_suspect = self._takeovers.is_suspect if self._takeovers.has_suspects else None
        return self._processor.process(own, is_suspect=is_suspect, is_young=self._held.is_young)

    def let_go(self) -> None:
        """Say that this process ends by no fault of what this consumer has at work; called on another thread.

        :raises DatabaseError: who takes its partitions over will be careful for a while.
        """
        if self._processor.is_hung:
            return  # it is: who takes over is to be careful, unless the event was charged
        self._processor.announcements.withdraw()
        self._heartbeat.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _is_drained(self, is_drained: Callable[[], bool]) -> bool:
        return not self._held and (self._switches.consumer_paused or is_drained())

    def _recover(self, error: Exception) -> None:
        """Subscribe anew where the subscription may be in no known state."""
        if not isinstance(error, (BrokerUnavailableError, DatabaseError, InterfaceError)):
            self._unsubscribe()

    def _pause(self, worked: bool) -> timedelta:
        """Return how long to rest after a step, beyond what it has waited for records."""
        if worked:
            return timedelta(0)
        if self._switches.consumer_paused:
            return timedelta(milliseconds=self._options.poll_interval_ms)
        return self._held.pause() or timedelta(0)

    def _receive(self, limit: int) -> None:
        """Receive more, unless what is at hand is enough; drop what is of partitions that moved away."""
        subscription = self._open()
        room = limit - len(self._in_hand)
        if room > 0 and not self._held.is_full and not self._switches.consumer_paused:
            wait = timedelta(milliseconds=self._options.poll_interval_ms)
            pause = self._held.pause()
            if self._in_hand:
                wait = timedelta(0)
            elif pause is not None:
                wait = min(wait, pause)
            # The table broker gives again what is held: beyond that there is room for more.
            received = subscription.receive(max_records=room + len(self._held), timeout=wait)
            if self._in_hand or self._held:
                known = {each.place for each in self._in_hand}
                received = [each for each in received if each not in self._held and each.place not in known]
            self._in_hand += received
        if self._held and (gone := self._held.forget(subscription.assignments)):
            subscription.hand_back(gone)

    def _look_at_assignments(self) -> None:
        """Before records of new partitions are handled: name those in the worker's row, and ask who had them before.

        :raises DatabaseError: the database is away.
        """
        assignments = self._open().assignments
        if assignments != self._assignments:
            close_if_idle()
            self._takeovers.look(assignments)
            self._heartbeat.hold(assignments.keys())
            self._assignments = dict(assignments)

    def _open(self) -> Subscription:
        if self._subscription is None:
            self._subscription = self._subscribe()
        return self._subscription

    def _unsubscribe(self) -> None:
        """Leave the group; what is held or in hand comes again to the one that gets its partition."""
        self._in_hand = []
        self._held.forget({})
        subscription, self._subscription = self._subscription, None
        try:
            if subscription is not None:
                subscription.close()
        except Exception:  # what it meets with must not end the consumer, which goes on with another one
            logger.warning("consumer of %s: its subscription could not be closed", self._route.service, exc_info=True)

    def _close(self) -> None:
        self._unsubscribe()
        self._heartbeat.close()
