"""The step that writes what a plan and the calls of its handlers say of a batch's rows, in the same transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from outbox.conf import ConsumerOptions
from outbox.consumer.batch import Batch, Outcome
from outbox.consumer.blame import failure_of
from outbox.consumer.isolation import Ran
from outbox.consumer.planning import Burial, Plan, Readable, lost_before, waits_until
from outbox.consumer.portions import Portion, each_alone, halves, whole
from outbox.declarations.handlers import Delivery
from outbox.exceptions import LostRowError
from outbox.lifecycle import Status
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import RejectionStore
from outbox.storage.rows import Blocker, Locked

_HELD_A_SECOND: Final = 25
"""About so many deferred events of a service come again in a second, however many it holds: a small part of what even a
slow handler leaves its consumer time for."""

_LONGEST_DEFERRAL: Final = timedelta(seconds=35)
"""An event that is put off for more than this, and not because of a failure, is held; locks put it off for less."""


@dataclass(frozen=True, slots=True)
class Done:
    """What is to be written of a plan, after the calls of its handlers."""

    deliver: list[Readable]
    """Those that took effect."""
    bury: list[Burial]
    left: list[Portion]
    """The portions in which the rest is done next."""


def done_of(batch: Batch, plan: Plan, ran: Ran) -> Done:
    """Return what is to be written of ``plan`` after its handlers ``ran``: what comes after one that did not waits."""
    left = ran.left()
    if not left:
        return Done(plan.deliver, plan.bury, [])
    after = batch.behind([*ran.failed, *ran.undecided, *ran.not_begun, *ran.contended])
    dead_later = {each.row.id for each in plan.bury if each.row.id in after}
    # What a list named, or could not be bisected in time, may lie behind what has not had its turn.
    not_yet = batch.behind([*ran.not_begun, *ran.contended])
    alone = {each.outbox_id for each in (*ran.failed, *ran.undecided)} - not_yet
    again = batch.records_of((left - alone - {each.outbox_id for each in ran.contended}) | dead_later)
    return Done(
        [each for each in plan.deliver if each.delivery.outbox_id not in left],
        [each for each in plan.bury if each.row.id not in dead_later],
        [*each_alone(batch.records_of(alone)), *(halves(again) if ran.failed else whole(again))],
    )


class Settle:
    """Moves the rows of one service as a plan says, and says in an ``Outcome`` what it did.

    ``redeliver_after``: an event that blocks others is sent again when it was sent so long ago and has not come.
    ``rand`` gives a random number in [0, 1). ``back_off`` gives the pause of an event that is interrupted once more.
    """

    def __init__(
        self,
        repository: ConsumerRows,
        rejections: RejectionStore,
        *,
        options: ConsumerOptions,
        redeliver_after: timedelta | None,
        rand: Callable[[], float],
        back_off: Callable[[Locked], timedelta],
    ) -> None:
        self._repository = repository
        self._rejections = rejections
        self._options = options
        self._redeliver_after = redeliver_after
        self._rand = rand
        self._back_off = back_off

    def write(self, batch: Batch, plan: Plan, ran: Ran | None) -> Outcome:
        """Write what became of ``batch``, in its transaction; without ``ran``, that its event is about to be tried.

        :raises LostRowError: a row of it was moved while it was locked.
        """
        outcome = Outcome(
            duplicates=batch.duplicates, rejected=batch.rejected, locked=batch.locked, left=list(batch.aside)
        )
        if ran is None:
            self._announce(batch, plan, outcome)
            done = Done([], plan.bury, [])
        else:
            done = done_of(batch, plan, ran)
            outcome.left += done.left
            self._defer_contended(ran.contended, outcome)
        # After the handlers: a note of a blocked key stays locked until the commit.
        self._defer_blocked(plan, outcome)
        self._bury(done.bury, outcome)
        self._finish(done.deliver, outcome)
        self._release(plan.noted, outcome)
        if outcome.rejected:
            self._rejections.add(outcome.rejected)
        return outcome

    def _announce(self, batch: Batch, plan: Plan, outcome: Outcome) -> None:
        """Count an interruption of the row before it is tried: when that ends the process, nobody else can."""
        for readable in plan.deliver:
            row = batch.row_of([readable.delivery])
            if self._repository.interrupt(row, due_at=self._repository.now() + self._back_off(row)):
                outcome.announced = row

    def _defer_blocked(self, plan: Plan, outcome: Outcome) -> None:
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

    def _defer_contended(self, deliveries: Sequence[Delivery[Any]], outcome: Outcome) -> None:
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

    def _bury(self, burials: Iterable[Burial], outcome: Outcome) -> None:
        """Make those dead that can never be handled."""
        for burial in burials:
            failure = failure_of(burial.error, with_traceback=False)
            self._repository.bury(burial.row.id, failure=failure, parks_key=burial.parks_key)
            outcome.buried.append((burial.row, failure.reason))
            if not burial.parks_key:
                outcome.finished.setdefault(burial.row.message_key, []).append(burial.row.id)

    def _finish(self, readables: Sequence[Readable], outcome: Outcome) -> None:
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

    def _release(self, noted: Sequence[int], outcome: Outcome) -> None:
        """Make those due that waited for what is finished, unless events of their key had to be put off."""
        finished = {key: max(ids) for key, ids in outcome.finished.items() if key not in outcome.blocked_keys}
        outcome.released += self._repository.release_behind(noted, finished)


def _is_held(blocker: Blocker, now: datetime) -> bool:
    return blocker.is_deferred and blocker.due_at is not None and blocker.due_at > now + _LONGEST_DEFERRAL
