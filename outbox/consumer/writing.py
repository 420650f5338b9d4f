"""Writes what a plan says of a batch's rows, inside of the transaction in which their handlers ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from outbox.conf import ConsumerOptions
from outbox.consumer.blame import failure_of
from outbox.consumer.outcomes import Outcome
from outbox.consumer.planning import Burial, Plan, Readable, lost_before, waits_until
from outbox.consumer.waiting import WaitingEvents
from outbox.declarations.handlers import Delivery
from outbox.exceptions import LostRowError
from outbox.storage.consumer_rows import ConsumerRows

_WOKEN_AT_ONCE: Final = 500
"""About so many events are woken by one batch; the others come when they are due."""


class PlanWriter:
    """Moves the rows of one service as a plan says, and notes in an ``Outcome`` what it did."""

    def __init__(
        self,
        repository: ConsumerRows,
        *,
        options: ConsumerOptions,
        waiting: WaitingEvents,
        redeliver_after: timedelta | None,
        rand: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._options = options
        self._waiting = waiting
        self._redeliver_after = redeliver_after
        self._rand = rand

    def defer_blocked(self, plan: Plan, outcome: Outcome) -> None:
        """Put those off that wait for a predecessor, and send a predecessor again whose record is lost."""
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

    def defer_contended(self, deliveries: Sequence[Delivery[Any]], outcome: Outcome) -> None:
        """Put those off for a moment whose turn did not come: others' locks had used up what their batch may wait."""
        if not deliveries:
            return
        now = self._repository.now()
        # Apart, so that they do not all come back in one batch, in the same order behind the same locks.
        until = {
            now + timedelta(seconds=0.2 + self._rand() + 0.001 * place): [each.outbox_id]
            for place, each in enumerate(deliveries)
        }
        outcome.waited += self._repository.wait_each(until)

    def bury(self, burials: Iterable[Burial], outcome: Outcome) -> None:
        """Make those dead that can never be handled."""
        for burial in burials:
            failure = failure_of(burial.error, with_traceback=False)
            self._repository.bury(burial.row.id, failure=failure, parks_key=burial.parks_key)
            outcome.buried.append((burial.row, failure.reason))
            if not burial.parks_key:
                outcome.finished.setdefault(burial.row.message_key, []).append(burial.row.id)

    def finish(self, readables: Sequence[Readable], outcome: Outcome) -> None:
        """Mark those consumed whose effects are in the transaction.

        :raises LostRowError: not all of them could be: somebody moved a row that was locked.
        """
        ids = [readable.delivery.outbox_id for readable in readables]
        if self._repository.mark_consumed(ids) != len(ids):
            table = self._repository.route.table
            raise LostRowError(f"rows of {table} changed while they were locked: {ids[:10]}")
        outcome.consumed.update(readable.delivery.event_type for readable in readables)
        for readable in readables:
            delivery = readable.delivery
            outcome.finished.setdefault(delivery.message_key, []).append(delivery.outbox_id)

    def wake(self, outcome: Outcome) -> None:
        """Make those due that waited for what is finished, unless events of their key in hand still have to wait."""
        count = 0
        for key, gone in outcome.finished.items() if self._waiting else ():
            ids = [] if key in outcome.put_back else self._waiting.next_of(key, besides=gone)
            if ids and count < _WOKEN_AT_ONCE:
                outcome.woken[key] = ids
                count += len(ids)
        if outcome.woken:
            self._repository.wake([row_id for ids in outcome.woken.values() for row_id in ids])
