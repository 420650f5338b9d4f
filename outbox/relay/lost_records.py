"""Finds rows that have been published for too long, and has them sent again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta

from outbox import signals
from outbox.brokers.base import Broker, Positions
from outbox.conf import RelayOptions
from outbox.exceptions import BrokerUnavailableError
from outbox.log_text import get_logger
from outbox.relay.watermark import DeliveryHorizon
from outbox.storage.relay_rows import RelayRows

logger = get_logger(__name__)


class LostRecords:
    """Sends again what one service's consumers have certainly seen the place of, and not finished.

    ``clock`` gives monotonic seconds.
    """

    def __init__(
        self, repository: RelayRows, broker: Broker, options: RelayOptions, *, clock: Callable[[], float]
    ) -> None:
        self._repository = repository
        self._route = repository.route
        self._broker = broker
        self._limit = options.batch_size
        self._after = timedelta(seconds=options.redeliver_after_seconds)
        self._every_s = min(options.redeliver_after_seconds / 4, 30.0)
        self._clock = clock
        self._looked_at: float | None = None
        self._horizon = DeliveryHorizon()
        self._problem = ""

    def send_again(self, shards: Collection[int] | None) -> int:
        """Make those of ``shards`` (None: all) due, where it is time to look; return how many.

        :raises DatabaseError: the database is unavailable.
        """
        if not self._broker.capabilities.keeps_records:
            return 0
        now_s = self._clock()
        if self._looked_at is not None and now_s - self._looked_at < self._every_s:
            return 0
        self._looked_at = now_s
        now = self._repository.now()
        positions = self._positions()
        horizon = self._horizon.update(now, positions) if positions is not None else None
        if horizon is None:
            return 0
        count = self._repository.redeliver(
            shards=shards, published_before=min(horizon, now - self._after), limit=self._limit
        )
        if count:
            self._looked_at = None
            logger.warning("relay of %s: %d rows were stuck in published and go out again", self._route.service, count)
            signals.redelivered.send_robust(self._route.service, count=count)
        return count

    def _positions(self) -> Positions | None:
        """Return the group's positions; None where they are not to be had, which is no reason to stop sending."""
        try:
            positions = self._broker.positions(self._route)
        except BrokerUnavailableError as error:
            if not self._problem:
                logger.warning(
                    "relay of %s: lost records are not sent again while the group's positions cannot be read: %s",
                    self._route.service,
                    error,
                )
            self._problem = str(error)
            return None
        self._problem = ""
        return positions
