"""One transaction of a consumer: lock, plan, run the handlers, prove their effects, mark, commit.

A batch is a value that flows one way through it: ``intake`` -> ``planning`` -> ``isolation``, which runs the handlers,
-> ``settle``; what became of it is told by ``report`` after the commit. No step calls an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from django.db import connections

from outbox.brokers.base import IncomingRecord
from outbox.conf import ConsumerOptions
from outbox.consumer.batch import Batch, Deliveries, Outcome
from outbox.consumer.failed_batches import Failure, failure_of
from outbox.consumer.intake import Intake, TooMuchAtOnce
from outbox.consumer.isolation import HandlerCalls, LockBudget, Ran
from outbox.consumer.late_connections import throw_away
from outbox.consumer.planning import Plan, make_plan
from outbox.consumer.portions import Portion, Way
from outbox.consumer.reading import RowReader
from outbox.consumer.settle import Settle
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.heartbeat import Witness
from outbox.exceptions import UndoneEffectsError
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.sessions import own_transaction


@dataclass(frozen=True, slots=True)
class Attempt:
    """One transaction of a portion: what it was about, and what it did or failed by."""

    batch: Batch
    token: object | None
    """The witness's, as the transaction began."""
    result: Outcome | Failure


class BatchTransactions:
    """The transactions of one service's consumer.

    ``parks_key`` says whether the death of an event type holds back its key, ``time_limit`` how long a call of its
    handler may take. ``on_hung`` is told, on another thread, of a call that does not return: the process ends.
    ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        repository: ConsumerRows,
        *,
        reader: RowReader,
        settle: Settle,
        options: ConsumerOptions,
        parks_key: Callable[[str], bool],
        time_limit: Callable[[str], timedelta],
        watchdog: Watchdog,
        witness: Witness,
        clock: Callable[[], float],
        on_hung: Callable[[Batch, Deliveries], None],
    ) -> None:
        self._repository = repository
        self._using = repository.route.database
        self._intake = Intake(repository, batch_bytes=options.batch_bytes)
        self._reader = reader
        self._settle = settle
        self._budget = timedelta(seconds=options.transaction_seconds)
        self._parks_key = parks_key
        self._time_limit = time_limit
        self._watchdog = watchdog
        self._witness = witness
        self._clock = clock
        self._on_hung = on_hung

    def attempt(self, portion: Portion, locks: LockBudget, *, is_young: Callable[[IncomingRecord], bool]) -> Attempt:
        """Do all of ``portion`` that can be done in one transaction; ``locks`` is what its batch may wait for locks.

        :raises TooMuchAtOnce: cut the portion.
        """
        using, token, batch = self._using, self._witness.token(), Batch(portion)
        calls_are_over = is_committing = False
        decoded = self._intake.decode(portion)
        try:
            with own_transaction(using):
                is_outermost = len(connections[using].savepoint_ids) == 0
                batch = self._intake.take(portion, decoded, is_young=is_young)
                plan = self._plan(batch)
                ran = self._run(batch, plan, locks, is_outermost=is_outermost)
                calls_are_over = ran is not None and bool(plan.deliver)
                outcome = self._settle.write(batch, plan, ran)
                is_committing = True
            if is_outermost and connections[using].in_atomic_block:  # a block was left open: this was no commit
                throw_away([connections[using]], depths={})
                raise UndoneEffectsError.ended()
        except TooMuchAtOnce:
            raise
        except Exception as error:  # noqa: BLE001 - what it means is decided by whoever asked for this attempt
            failed = failure_of(error, using, calls_are_over=calls_are_over, is_committing=is_committing)
            return Attempt(batch, token, failed)
        return Attempt(batch, token, outcome)

    def _plan(self, batch: Batch) -> Plan:
        before = self._repository.predecessors(batch.live)
        plan = make_plan(
            batch.live,
            before.blockers,
            read=partial(self._reader.read, is_announced=batch.portion.announced is not None),
            parks_key=self._parks_key,
        )
        plan.noted = before.blocked_keys
        return plan

    def _run(self, batch: Batch, plan: Plan, locks: LockBudget, *, is_outermost: bool) -> Ran | None:
        """Call the handlers of ``plan``; None where its event is only announced."""
        if batch.portion.way in (Way.SUSPECT, Way.ANNOUNCED):
            return None
        calls = HandlerCalls(
            self._using,
            watchdog=self._watchdog,
            time_limit=self._time_limit,
            clock=self._clock,
            budget=self._budget,
            locks=locks,
            guards_hooks=is_outermost,
            on_hung=partial(self._on_hung, batch),
        )
        return calls.run(plan.deliver, in_savepoints=batch.portion.way is Way.IN_SAVEPOINTS)
