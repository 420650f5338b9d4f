"""The last step: the world is told what a transaction did, after it committed: totals, signals, log lines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from outbox import signals
from outbox.consumer.batch import Outcome
from outbox.consumer.blame import message_of
from outbox.log_text import get_logger
from outbox.storage.rows import Locked

logger = get_logger(__name__)


@dataclass(slots=True)
class ConsumerTotals:
    """What a consumer has done since it started, in events (``rejected``: in records)."""

    consumed: int = 0
    retried: int = 0
    waited: int = 0
    dead: int = 0
    rejected: int = 0
    duplicates: int = 0

    @property
    def handled(self) -> int:
        return self.consumed + self.retried + self.waited + self.dead + self.rejected + self.duplicates


class News:
    """Tells of one service's events, after the transactions that they were part of committed."""

    def __init__(self, service: str, totals: ConsumerTotals) -> None:
        self._service, self._totals = service, totals
        self._faults = 0

    def tell(self, outcome: Outcome) -> None:
        """Tell what one transaction did."""
        service, totals = self._service, self._totals
        consumed = outcome.consumed.total()
        totals.consumed += consumed
        totals.waited += outcome.waited
        totals.duplicates += outcome.duplicates
        totals.rejected += len(outcome.rejected)
        if consumed:
            signals.consumed.send_robust(service, count=consumed, event_types=dict(outcome.consumed))
        if outcome.waited:
            signals.waited.send_robust(service, count=outcome.waited)
        if outcome.redelivered:
            logger.warning(
                "consumer of %s: %d rows go out again: they were published, and what was sent after them came without"
                " them",
                service,
                outcome.redelivered,
            )
            signals.redelivered.send_robust(service, count=outcome.redelivered)
        if outcome.rejected:
            reasons = [rejection.reason for rejection in outcome.rejected]
            logger.error(
                "consumer of %s: %d records rejected, kept for a person: %s", service, len(reasons), reasons[0]
            )
            signals.rejected.send_robust(service, count=len(reasons), reasons=reasons)
        for row, reason in outcome.buried:
            self.tell_dead(row, reason)

    def tell_dead(self, row: Locked, reason: str) -> None:
        """Tell that an event died."""
        self._totals.dead += 1
        logger.error("consumer of %s: row %s (%s) is dead: %s", self._service, row.id, row.event_type, reason)
        signals.buried.send_robust(self._service, outbox_id=row.id, event_type=row.event_type, reason=reason)

    def tell_interrupted(self, row: Locked, count: int, pause: timedelta, error: Exception) -> None:
        """Tell that an event was interrupted while it was at work."""
        logger.warning(
            "consumer of %s: row %s (%s): interrupted while it was at work, interruption %d, again in %.1f s: %s",
            self._service,
            row.id,
            row.event_type,
            count,
            pause.total_seconds(),
            message_of(error),
        )
        signals.interrupted.send_robust(
            self._service, outbox_id=row.id, event_type=row.event_type, interruptions=count, delay=pause
        )

    def tell_fault(self, error: Exception) -> None:
        """Tell that something of our own failed, which no event is charged with; at 1, 2, 4, 8, … times."""
        self._faults += 1
        if self._faults & (self._faults - 1) == 0:
            logger.error(
                "consumer of %s: internal error, its records stay uncommitted and are tried again (%d so far): %s",
                self._service,
                self._faults,
                message_of(error),
                exc_info=error,
            )

    def tell_retried(self, row: Locked, pause: timedelta, *, error: Exception, reason: str) -> None:
        """Tell that an attempt failed, and that the event comes again after ``pause``."""
        self._totals.retried += 1
        attempt = row.retry_count + 1
        logger.warning(
            "consumer of %s: row %s (%s) failed, attempt %d of %d, again in %.1f s: %s",
            self._service,
            row.id,
            row.event_type,
            attempt,
            row.max_retry,
            pause.total_seconds(),
            reason,
        )
        signals.retried.send_robust(
            self._service,
            outbox_id=row.id,
            event_type=row.event_type,
            attempt=attempt,
            delay=pause,
            error=error,
        )
