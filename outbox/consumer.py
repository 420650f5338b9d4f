"""The consumer: receives records, has them handled, and commits their offsets behind the database's commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox.brokers.base import IncomingRecord, Subscription
from outbox.conf import ConsumerOptions
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError
from outbox.handling import BatchHandling
from outbox.leases import Presence, Switches
from outbox.outage import OutageWatch
from outbox.outcomes import ConsumerTotals
from outbox.routes import ServiceRoute
from outbox.shutdown import StopFlag
from outbox.sql import Trouble, trouble_of

logger = logging.getLogger(__name__)


class Consumer:
    """One service's consumer; an object that a test can hold: handling, subscription and clock are passed in."""

    def __init__(
        self,
        *,
        route: ServiceRoute,
        handling: BatchHandling,
        subscribe: Callable[[], Subscription],
        options: ConsumerOptions,
        presence: Presence,
        heartbeat: timedelta,
        clock: Callable[[], float],
    ) -> None:
        self._route = route
        self._handling = handling
        self._subscribe = subscribe
        self._subscription: Subscription | None = None
        self._options = options
        self._presence = presence
        self._heartbeat_s = heartbeat.total_seconds()
        self._clock = clock
        self._switches = Switches()
        self._beaten_at: float | None = None
        self._in_hand: list[IncomingRecord] = []
        self._outage = OutageWatch(self._route.service, "consumer")

    @property
    def totals(self) -> ConsumerTotals:
        """Return what has been done so far."""
        return self._handling.totals

    def run(
        self, stop: StopFlag, *, max_events: int | None = None, is_drained: Callable[[], bool] | None = None
    ) -> ConsumerTotals:
        """Work until ``stop`` is set, ``max_events`` are handled, or nothing came and ``is_drained`` says so.

        With ``is_drained`` it also ends when the consumer is paused: nothing will come.

        An outage only makes it wait: the batch in hand is kept and done again.
        """
        try:
            while not stop.is_set and (max_events is None or self.totals.handled < max_events):
                limit = self._options.batch_size
                if max_events is not None:
                    limit = min(limit, max_events - self.totals.handled)
                try:
                    worked = self.step(limit)
                    if not worked and is_drained is not None and (self._switches.consumer_paused or is_drained()):
                        break
                except BrokerUnavailableError as error:
                    stop.wait(self._outage.failed("broker", error))
                except LostSubscriptionError as error:
                    self._unsubscribe()
                    stop.wait(self._outage.failed("subscription", error))
                except (DatabaseError, InterfaceError) as error:
                    trouble = trouble_of(error, self._route.database)
                    if trouble is Trouble.STATEMENT:
                        raise
                    connections[self._route.database].close()
                    stop.wait(self._outage.failed("database", error, state=trouble.state))
                else:
                    self._outage.over()
                    if self._switches.consumer_paused:
                        stop.wait(timedelta(milliseconds=self._options.poll_interval_ms))
        finally:
            self._close()
        return self.totals

    def step(self, limit: int) -> bool:
        """Receive up to ``limit`` records, handle and commit them; say whether there were any.

        :raises BrokerUnavailableError: the broker is away; records in hand are kept.
        :raises LostSubscriptionError: subscribe again; what was not committed comes again.
        :raises DatabaseError: the database is away; records in hand are kept.
        """
        self._beat()
        if not self._in_hand:
            if self._switches.consumer_paused:
                return False
            self._in_hand = self._open().receive(
                max_records=limit, timeout=timedelta(milliseconds=self._options.poll_interval_ms)
            )
        if not self._in_hand:
            return False
        self.handle(self._in_hand)
        done, self._in_hand = self._in_hand, []
        # Should this fail, the records come again and are found to be done.
        self._open().commit(done)
        return True

    def handle(self, records: Sequence[IncomingRecord]) -> None:
        """Bring every record to an end, without the broker's knowledge: see ``BatchHandling.handle``."""
        self._handling.handle(records)

    def _beat(self) -> None:
        now = self._clock()
        if self._beaten_at is None or now - self._beaten_at >= self._heartbeat_s:
            self._switches = self._presence.beat()
            self._beaten_at = now

    def _open(self) -> Subscription:
        if self._subscription is None:
            self._subscription = self._subscribe()
        return self._subscription

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _close(self) -> None:
        self._unsubscribe()
        try:
            self._presence.leave()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("consumer of %s: its presence row runs out by itself: %s", self._route.service, error)
