"""The protocol of relay, topic and consumer as a transition system: frozen states, pure functions from one to the next.

What the project's pure modules decide is decided by them: ``outbox.lifecycle`` says which statuses a move is legal
from, ``outbox.consumer.planning`` what a consumer delivers, buries and puts back, and until when. The rest repeats in
a few lines what relay, marks, repository, handling and consumer do, with one step for each moment at which others see a
difference or a crash makes one.

What stands for what
    Time       A pause may end at any moment (``due``). A claim is stale once its row was put back: that is what
               ``next_retry_at <= claimed_at`` compares, as every put-back is due later than the claims before it.
    Relay      Claims all that is due, hands over record by record in the order of ids, settles what was answered.
               It may claim again before that, so two batches may be in flight. Its memory is sets of rows. Between an
               answer and its mark it changes nothing that others see, so a crash there is one before the answer.
    Lease      One for all keys. It can run out at any moment: the other relay takes it, this one goes on as if nothing
               had happened until it looks again, which it does only when nothing is in flight.
    Redelivery At any moment after the mark (kind ``EARLY``), more than the horizon allows. Progress is shown with
               those alone that the horizon certainly allows: everything on the topic is committed (kind ``SYSTEM``).
    Topic      What lies behind the committed offset of each partition; what lies before it never comes again.
    Consumer   Receives all there is. A transaction has two steps, begin (lock, look, plan) and commit; locked rows are
               changed by nobody else. What fails together is done again in halves; the note on one that failed alone
               is a step of its own, with no lock held in between. A partition can be lost at any moment unnoticed;
               the offsets of what is in hand are passed over from then on.
    Suspects   An interruption is a column of the row. A consumer that ends is at once replaced by one that suspects its
               partitions until it has passed the next records of each. To announce and to try are steps of their own:
               who sleeps in between may be taken for one that ended, so that a death is exactly deserved only where
               there is one consumer.
    Strangers  Another installation sends records with ids of ours, which state no event id: their header alone tells.
               One of its consumers takes a partition for as long as it passes some records; what ours had in flight of
               it they commit no more. A database that was restored has given ids out again: a record of the earlier
               row states another event id. Either kind may come at any moment. Progress is shown without them: all
               arrives once they leave.
    Workers    Those of one role are alike, so their order in a state means nothing: a number in a trace is a place.

Bounds
    Records behind the committed offset: ``lag`` for each partition; a relay waits when it is full, which also bounds
    how often a row is sent. Attempts: ``max_attempts``. Faults: ``faults`` in all, or any number (None), which is
    possible as the states are finite all the same. A fault is a crash, a lease lost or handed over, a partition lost,
    an answer lost (of the broker, of a commit), an outage, a lost lock, an early redelivery, an emptied topic,
    a stranger's record, a theft.
    Failures of handlers and acts of the operator are not counted. Events, workers, partitions: as the case says.

Left out: pruning, foreign rows, payloads by reference, the place where a claim goes on, and clocks that go backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from outbox import lifecycle
from outbox.lifecycle import Status
from tests.model.case import Case
from tests.model.consumer import consumer_steps, consumer_without
from tests.model.relay import relay_steps, relay_without
from tests.model.state import (
    Consumer,
    Kind,
    Lease,
    Relay,
    Row,
    State,
    Step,
    Transaction,
    put_back,
    replayed,
    with_row,
    without,
)
from tests.model.strangers import stranger_steps


@dataclass(frozen=True)
class Protocol(Case):
    """A small case with the steps that are possible in it, and its promises."""

    @cached_property
    def start(self) -> State:
        """Return the state in which nothing has happened yet."""
        rows = tuple(Row(None if i in self.late else Status.PENDING) for i in range(len(self.keys)))
        relays = (Relay(Lease.HELD), *[Relay(Lease.NONE)] * (self.relays - 1))
        owned = [0] * self.consumers
        for partition in range(self.partitions):
            owned[partition % self.consumers] |= 1 << partition
        consumers = tuple(Consumer(bits) for bits in owned)
        return self.normal(State(rows, 0, ((),) * self.partitions, relays, consumers, self.faults or 0))

    def normal(self, state: State) -> State:
        """Return one state for all that differ in nothing that matters."""
        rows, effects, topic, relays, consumers, faults = state
        done = self._done(state) if self.forgets_done else 0
        if done:
            topic = tuple(without(records, done) for records in topic)
            relays = tuple(relay_without(relay, done) for relay in relays)
            consumers = tuple(consumer_without(consumer, done) for consumer in consumers)
        if len(relays) > 1 and relays[1] < relays[0]:
            relays = relays[::-1]
        if len(consumers) > 1 and consumers[1] < consumers[0]:
            consumers = consumers[::-1]
        return State(rows, effects, topic, relays, consumers, faults)

    def _done(self, state: State) -> int:
        done = 0
        for i, row in enumerate(state.rows):
            if row.status is Status.CONSUMED or (row.status is Status.DEAD and not self.replays):
                done |= 1 << i
        return done

    def is_done(self, state: State) -> bool:
        """Say whether every event is consumed or dead."""
        return all(row.status in (Status.CONSUMED, Status.DEAD) for row in state.rows)

    def steps(self, state: State) -> Iterator[Step]:
        """Return every step that somebody can take from ``state``, workers in their normal order afterwards."""
        locked = 0
        if self.guards.locks_rows:
            for consumer in state.consumers:
                if isinstance(consumer.open, Transaction):
                    locked |= consumer.open.locked
        yield from self._rows(state, locked)
        for place in _distinct(state.relays):
            yield from relay_steps(self, state, place, locked)
        for place in _distinct(state.consumers):
            yield from consumer_steps(self, state, place, locked)
        if self.loses_topic and any(state.topic) and self.may_fail(state):
            consumers = tuple(each._replace(current=0) for each in state.consumers)
            empty = state._replace(topic=((),) * self.partitions, consumers=consumers)
            yield from self.fault(("the topic loses its records",), empty)
        if self.may_fail(state):
            yield from stranger_steps(self, state)

    def breach(self, state: State) -> str:
        """Return which promise ``state`` breaks, or nothing."""
        for i, row in enumerate(state.rows):
            if (row.status is Status.CONSUMED) != bool(state.effects >> i & 1):
                return f"row {i} is {row.status} and its effect is {'' if state.effects >> i & 1 else 'not '}there"
            if row.attempts and (i not in self.poison or row.mended):
                return f"row {i} lost an attempt though its handler never failed"
            if row.attempts > self.max_attempts:
                return f"row {i} has more attempts than it may have"
            if row.interruptions > self.max_interruptions and row.status is not Status.DEAD:
                return f"row {i} has more interruptions than it may have"
            if row.kills > self.most_kills:
                return f"row {i} has ended more processes than it may"
            if row.ends and self.faults == 0 and i not in self.killers:
                return f"row {i} was at work when the handler of another ended the process"
            dies_at_once = i in self.unreadable | self.refused and not row.mended
            dies_at_once = dies_at_once or 0 < self.max_interruptions <= row.interruptions
            is_early = row.status is Status.DEAD and row.attempts < self.max_attempts
            if is_early and self.expects_all_attempts and not dies_at_once:
                return f"row {i} died before its last attempt"
        if self.expects_single_records and any(len(set(records)) < len(records) for records in state.topic):
            return "a row is on the topic twice"
        return ""

    # --- rows: time, the operator, redelivery --------------------------------------------------------------------

    def _rows(self, state: State, locked: int) -> Iterator[Step]:
        for i, row in enumerate(state.rows):
            if row.status is None:
                yield Step(Kind.SYSTEM, ("the transaction of", i, "commits"), with_row(state, i, Row(Status.PENDING)))
            elif row.status is Status.PENDING and not row.due:
                yield Step(Kind.SYSTEM, ("the pause ends of", i), with_row(state, i, row._replace(due=True)))
            elif locked >> i & 1:
                continue
            elif row.status is Status.PUBLISHED and self.guards.redelivers:
                moved = with_row(state, i, self.move(row, lifecycle.REDELIVER))
                moved = put_back(moved, 1 << i)
                if not any(state.topic):
                    yield Step(Kind.SYSTEM, ("a relay redelivers", i), moved)
                elif self.may_fail(state):
                    yield from self.fault(("a relay redelivers early", i), moved, kind=Kind.EARLY)
            elif row.status is Status.DEAD and self.replays:
                again = self.move(row, lifecycle.REPLAY, due=True, attempts=0, parks=False, mended=self.mends)
                again = again._replace(interruptions=0, ends=0)
                yield Step(Kind.OPERATOR, ("replay", i), replayed(self._wake(state, i, again, locked), i))
                if row.parks:
                    given_up = self.move(row, lifecycle.GIVE_UP, parks=False)
                    yield Step(Kind.OPERATOR, ("give up", i), self._wake(state, i, given_up, locked))

    def _wake(self, state: State, i: int, moved: Row, locked: int) -> State:
        rows = list(state.rows)
        rows[i] = moved
        woken = 1 << i
        for j in range(i + 1, len(rows)):
            row = rows[j]
            waits = row.status is Status.PENDING and not row.due and not row.attempts
            if self.keys[j] == self.keys[i] and waits and not locked >> j & 1:
                rows[j] = self.move(row, lifecycle.WAIT, due=True)
                woken |= 1 << j
        return put_back(state._replace(rows=tuple(rows)), woken)


def _distinct(workers: tuple[Any, ...]) -> Iterator[int]:
    """Return the places of workers that differ: what one of two equal ones can do, the other can."""
    for place, worker in enumerate(workers):
        if worker not in workers[:place]:
            yield place
