"""Writes what a plan says of a batch's rows, inside of the transaction in which their handlers ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from outbox.conf import ConsumerOptions
from outbox.consumer.blame import failure_of
from outbox.consumer.outcomes import Outcome
from outbox.consumer.planning import Burial, Plan, Readable, lost_before, waits_until
from outbox.declarations.handlers import Delivery
from outbox.exceptions import LostRowError
from outbox.lifecycle import Status
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rows import Blocker

_HELD_A_SECOND: Final = 25
"""About so many deferred events of a service come again in a second, however many it holds: a small part of what even a
slow handler leaves its consumer time for."""

_LONGEST_DEFERRAL: Final = timedelta(seconds=35)
"""An event that is put off for more than this, and not because of a failure, is held; locks put it off for less."""


class PlanWriter:
    """Moves the rows of one service as a plan says, and notes in an ``Outcome`` what it did."""

    def __init__(
        self,
        repository: ConsumerRows,
        *,
        options: ConsumerOptions,
        redeliver_after: timedelta | None,
        rand: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._options = options
        self._redeliver_after = redeliver_after
        self._rand = rand

    def defer_blocked(self, plan: Plan, outcome: Outcome) -> None:
        """Put off those that wait for a predecessor, and note their keys as blocked.

        A predecessor whose record is lost is sent again. One that is held itself has nothing before it: its release
        crossed its deferral, and is made good.
        """
        if not plan.wait:
            return
        now = self._repository.now()
        oldest: dict[str, int] = {}
        for row, blocker in plan.wait:
            oldest.setdefault(row.message_key, row.id if blocker is None else blocker.id)
        outcome.blocked_keys |= oldest.keys()
        joining = Counter(row.message_key for row, _ in plan.wait if row.status != Status.PENDING)
        spread = self._spread(self._repository.note_blocked(oldest, joining=joining))
        until: dict[datetime, list[int]] = {}
        for place, (row, blocker) in enumerate(plan.wait):
            moment = waits_until(
                blocker,
                now=now,
                shortest=timedelta(milliseconds=self._options.wait_min_ms),
                longest=timedelta(seconds=self._options.wait_max_seconds),
            )
            share = (place + self._rand()) / len(plan.wait)
            until.setdefault(moment + timedelta(seconds=int(spread * share)), []).append(row.id)
        outcome.waited += self._repository.wait_each(until)
        held = {row.message_key: blocker.id - 1 for row, blocker in plan.wait if blocker and _is_held(blocker, now)}
        outcome.released += self._repository.release(held) if held else 0
        if self._redeliver_after is not None:
            outcome.redelivered = self._repository.redeliver_lost(lost_before(plan.wait, after=self._redeliver_after))

    @staticmethod
    def _spread(held: int) -> float:
        """Return over how many seconds deferred events are spread, where a service holds so many."""
        return 2 * max(held - _HELD_A_SECOND, 0) / _HELD_A_SECOND

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

    def release(self, noted: Sequence[int], outcome: Outcome) -> None:
        """Make those due that waited for what is finished, unless events of their key had to be put off."""
        finished = {key: max(ids) for key, ids in outcome.finished.items() if key not in outcome.blocked_keys}
        outcome.released += self._repository.release_behind(noted, finished)


def _is_held(blocker: Blocker, now: datetime) -> bool:
    return blocker.is_deferred and blocker.due_at is not None and blocker.due_at > now + _LONGEST_DEFERRAL
