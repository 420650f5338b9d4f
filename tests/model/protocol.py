"""The protocol of relay, topic and consumer as a transition system: frozen states, pure functions from one to the next.

What the project's pure modules decide is decided by them: ``outbox.lifecycle`` says which statuses a move is legal
from, ``outbox.planning`` what a consumer delivers, buries and puts back, and until when. The rest repeats in a few
lines what relay, marks, repository, handling and consumer do, with one step for each moment at which others see a
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
    Workers    Those of one role are alike, so their order in a state means nothing: a number in a trace is a place.

Bounds
    Records behind the committed offset: ``lag`` for each partition; a relay waits when it is full, which also bounds
    how often a row is sent. Attempts: ``max_attempts``. Faults: ``faults`` in all, or any number (None), which is
    possible as the states are finite all the same. A fault is a crash, a lease lost or handed over, a partition lost,
    an answer lost (of the broker, of a commit), an outage, a lost lock, an early redelivery, an emptied topic.
    Failures of handlers and acts of the operator are not counted. Events, workers, partitions: as the case says.

Left out: pruning, foreign rows, payloads by reference, the place where a claim goes on, and clocks that go backwards.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

from outbox import lifecycle
from outbox.exceptions import UnreadableError
from outbox.handlers import Delivery, Handler
from outbox.lifecycle import UNFINISHED, Status, Transition
from outbox.planning import Plan, Readable, make_plan, waits_until
from outbox.rows import Blocker, Locked

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
SHORTEST, LONGEST, BACK_OFF = timedelta(milliseconds=200), timedelta(seconds=60), timedelta(hours=1)


class Kind(enum.IntEnum):
    """Who takes a step."""

    SYSTEM = 0
    EARLY = 1
    FAULT = 2
    FAILURE = 3
    OPERATOR = 4


class Row(NamedTuple):
    """A row of the table; ``status`` is None before its transaction commits."""

    status: Status | None
    due: bool = True
    attempts: int = 0
    parks: bool = False
    mended: bool = False


class Lease(enum.IntEnum):
    """What a relay has of the lease."""

    NONE = 0
    HELD = 1
    LOST = 2
    """It believes that it holds the lease, and another one does."""


class Relay(NamedTuple):
    """A relay's memory; sets of rows are bits. A row is in one of the first three at most."""

    lease: Lease
    claimed: int = 0
    sent: int = 0
    unmarked: int = 0
    stale: int = 0
    """Of all three: put back since it was claimed."""
    refused: int = 0
    """Of the first two: the broker refuses the record that was claimed."""


class Transaction(NamedTuple):
    """An open transaction of a consumer: what it has locked and what it will do."""

    locked: int
    deliver: tuple[int, ...]
    bury: tuple[tuple[int, bool], ...]
    wait: tuple[int, ...]
    excused: int
    """Rows that nobody could wait for when it looked: not committed, or dead and letting their key go on."""


class Blame(NamedTuple):
    """An event that failed alone, about to be noted. ``attempts`` as the transaction saw them, None: a lost lock."""

    row: int
    attempts: int | None


class Consumer(NamedTuple):
    """A consumer's memory, and the partitions that it owns (bits)."""

    owned: int
    in_hand: tuple[tuple[int, ...], ...] = ()
    """By partition; empty between batches."""
    current: int = 0
    """Partitions whose records in hand it may still commit."""
    todo: tuple[tuple[int, ...], ...] = ()
    open: tuple[Any, ...] = ()
    """A ``Transaction``, a ``Blame``, or nothing."""


class State(NamedTuple):
    """Everything that there is at one moment."""

    rows: tuple[Row, ...]
    effects: int
    topic: tuple[tuple[int, ...], ...]
    relays: tuple[Relay, ...]
    consumers: tuple[Consumer, ...]
    faults: int


class Step(NamedTuple):
    """One step to ``state``; ``breach`` says what promise it broke by itself."""

    kind: Kind
    label: tuple[Any, ...]
    state: State
    breach: str = ""


@dataclass(frozen=True, slots=True)
class Guards:
    """What the protocol does for its promises; a test switches one off to see what it is there for."""

    looks_at_status: bool = True
    """The consumer drops what is done, and what is in a back-off."""
    counts_consumed: bool = True
    """The consumer rolls back when it could not mark all that it handled."""
    locks_rows: bool = True
    waits_for_predecessor: bool = True
    waits_for_parked: bool = True
    """A dead row that parks its key counts as an unfinished predecessor."""
    is_atomic: bool = True
    """An effect and its status commit together."""
    commits_after_database: bool = True
    """Offsets are committed behind the database's commit."""
    moves_from_sources: bool = True
    """An update changes only rows in a status that the transition is legal from."""
    marks_as_claimed: bool = True
    """The relay marks only rows that were not put back since."""
    remembers_unmarked: bool = True
    """The relay does not send again what it could not mark because a consumer holds it."""
    marks_after_answer: bool = True
    """The relay marks only what the broker has acknowledged."""
    notes_seen_attempt: bool = True
    """A failed attempt is noted only on a row that has as many attempts as the consumer saw."""
    buries_seen_attempt: bool = True
    """The same for the last attempt, which makes the event dead."""
    buries_as_claimed: bool = True
    """The relay buries what the broker refused only as it was claimed."""
    excuses_lost_locks: bool = True
    """A transaction that lost its locks costs no attempt."""
    redelivers: bool = True


@dataclass(frozen=True)
class Protocol:
    """One small case: its rows, workers and what can happen to them."""

    keys: str
    """One letter a row, in the order of ids."""
    relays: int = 1
    consumers: int = 1
    partitions: int = 1
    lag: int = 3
    batch: int = 3
    max_attempts: int = 2
    faults: int | None = None
    late: frozenset[int] = frozenset()
    """Rows whose transaction commits at any later moment."""
    poison: frozenset[int] = frozenset()
    """Rows whose handler may fail."""
    unreadable: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    """Rows whose record the broker refuses."""
    parks: bool = False
    """A death holds back its key until the operator decides."""
    replays: bool = False
    mends: bool = False
    """The operator edits what he replays: then it can be handled, and the broker takes it."""
    loses_topic: bool = False
    forgets_done: bool = False
    """Leave out the records of rows that are done for good: whoever receives one drops it (shown without this)."""
    expects_all_attempts: bool = True
    """Take an event that dies before its last attempt for a breach."""
    expects_single_records: bool = False
    """Take a second record of a row behind the offset for a breach; true of cases where nothing goes wrong."""
    guards: Guards = field(default_factory=Guards)
    _transactions: dict[Any, Transaction] = field(default_factory=dict, init=False, compare=False, repr=False)

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
            topic = tuple(_without(records, done) for records in topic)
            relays = tuple(_relay_without(relay, done) for relay in relays)
            consumers = tuple(_consumer_without(consumer, done) for consumer in consumers)
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
            yield from self._relay(state, place, locked)
        for place in _distinct(state.consumers):
            yield from self._consumer(state, place, locked)
        if self.loses_topic and any(state.topic) and self._may_fail(state):
            consumers = tuple(each._replace(current=0) for each in state.consumers)
            empty = state._replace(topic=((),) * self.partitions, consumers=consumers)
            yield from self._fault(("the topic loses its records",), empty)

    def breach(self, state: State) -> str:
        """Return which promise ``state`` breaks, or nothing."""
        for i, row in enumerate(state.rows):
            if (row.status is Status.CONSUMED) != bool(state.effects >> i & 1):
                return f"row {i} is {row.status} and its effect is {'' if state.effects >> i & 1 else 'not '}there"
            if row.attempts and (i not in self.poison or row.mended):
                return f"row {i} lost an attempt though its handler never failed"
            if row.attempts > self.max_attempts:
                return f"row {i} has more attempts than it may have"
            dies_at_once = i in self.unreadable | self.refused and not row.mended
            is_early = row.status is Status.DEAD and row.attempts < self.max_attempts
            if is_early and self.expects_all_attempts and not dies_at_once:
                return f"row {i} died before its last attempt"
        if self.expects_single_records and any(len(set(records)) < len(records) for records in state.topic):
            return "a row is on the topic twice"
        return ""

    def _may_fail(self, state: State) -> bool:
        return self.faults is None or state.faults > 0

    def _fault(self, label: tuple[Any, ...], after: State, breach: str = "", kind: Kind = Kind.FAULT) -> Iterator[Step]:
        if self.faults is None:
            yield Step(kind, label, after, breach)
        elif after.faults:
            yield Step(kind, label, after._replace(faults=after.faults - 1), breach)

    # --- rows: time, the operator, redelivery --------------------------------------------------------------------

    def _rows(self, state: State, locked: int) -> Iterator[Step]:
        for i, row in enumerate(state.rows):
            if row.status is None:
                yield Step(Kind.SYSTEM, ("the transaction of", i, "commits"), _with_row(state, i, Row(Status.PENDING)))
            elif row.status is Status.PENDING and not row.due:
                yield Step(Kind.SYSTEM, ("the pause ends of", i), _with_row(state, i, row._replace(due=True)))
            elif locked >> i & 1:
                continue
            elif row.status is Status.PUBLISHED and self.guards.redelivers:
                moved = _with_row(state, i, self._move(row, lifecycle.REDELIVER))
                moved = _put_back(moved, 1 << i)
                if not any(state.topic):
                    yield Step(Kind.SYSTEM, ("a relay redelivers", i), moved)
                elif self._may_fail(state):
                    yield from self._fault(("a relay redelivers early", i), moved, kind=Kind.EARLY)
            elif row.status is Status.DEAD and self.replays:
                replayed = self._move(row, lifecycle.REPLAY, due=True, attempts=0, parks=False, mended=self.mends)
                yield Step(Kind.OPERATOR, ("replay", i), self._wake(state, i, replayed, locked))
                if row.parks:
                    given_up = self._move(row, lifecycle.GIVE_UP, parks=False)
                    yield Step(Kind.OPERATOR, ("give up", i), self._wake(state, i, given_up, locked))

    def _wake(self, state: State, i: int, moved: Row, locked: int) -> State:
        rows = list(state.rows)
        rows[i] = moved
        woken = 1 << i
        for j in range(i + 1, len(rows)):
            row = rows[j]
            waits = row.status is Status.PENDING and not row.due and not row.attempts
            if self.keys[j] == self.keys[i] and waits and not locked >> j & 1:
                rows[j] = self._move(row, lifecycle.WAIT, due=True)
                woken |= 1 << j
        return _put_back(state._replace(rows=tuple(rows)), woken)

    def _move(self, row: Row, transition: Transition, **changes: Any) -> Row:
        """Apply ``transition`` where it is legal, as the repository's conditional update does."""
        if row.status not in transition.sources and self.guards.moves_from_sources:
            return row
        return row._replace(status=transition.target, **changes)

    # --- relay ---------------------------------------------------------------------------------------------------

    def _relay(self, state: State, place: int, locked: int) -> Iterator[Step]:
        relay = state.relays[place]
        if relay.claimed:
            yield from self._send(state, place)
        elif relay.lease:
            yield from self._claim(state, place)
        if relay.sent and not relay.claimed:
            yield from self._settle(state, place, locked)
        elif relay.unmarked & (~locked | relay.stale) and not relay.claimed:
            label = ("relay", place, "marks what it remembers", _ids(relay.unmarked))
            yield Step(Kind.SYSTEM, label, self._mark(state, place, relay, relay.unmarked, locked))
        idle = not relay.claimed | relay.sent
        if relay.lease is Lease.HELD and self.relays > 1 and self._may_fail(state):
            yield from self._lose_lease(state, place, idle=idle)
        elif relay.lease is Lease.LOST and idle:
            after = _with_relay(state, place, relay._replace(lease=Lease.NONE))
            yield Step(Kind.SYSTEM, ("relay", place, "sees that its lease is gone"), after)
        if relay.claimed | relay.sent | relay.unmarked and self._may_fail(state):
            heir = relay.lease is Lease.HELD and self.relays > 1
            after = _with_relay(state, place, Relay(Lease.HELD if self.relays == 1 else Lease.NONE))
            yield from self._fault(("relay", place, "crashes"), _with_heir(after, place) if heir else after)

    def _lose_lease(self, state: State, place: int, *, idle: bool) -> Iterator[Step]:
        relay = state.relays[place]
        if idle:
            after = _with_heir(_with_relay(state, place, relay._replace(lease=Lease.NONE)), place)
            yield from self._fault(("relay", place, "gives its lease back"), after)
        after = _with_heir(_with_relay(state, place, relay._replace(lease=Lease.LOST)), place)
        yield from self._fault(("relay", place, "sleeps through the end of its lease"), after)

    def _claim(self, state: State, place: int) -> Iterator[Step]:
        relay = state.relays[place]
        known = relay.sent | relay.unmarked
        claimed = 0
        for i, row in enumerate(state.rows):
            if row.status is Status.PENDING and row.due and not known >> i & 1:
                claimed |= 1 << i
        if claimed:
            refused = sum(1 << i for i in _ids(claimed) if i in self.refused and not state.rows[i].mended)
            after = _with_relay(state, place, relay._replace(claimed=claimed, refused=relay.refused | refused))
            yield Step(Kind.SYSTEM, ("relay", place, "claims", _ids(claimed)), after)

    def _send(self, state: State, place: int) -> Iterator[Step]:
        relay = state.relays[place]
        bit = relay.claimed & -relay.claimed
        i = bit.bit_length() - 1
        sent = _with_relay(state, place, relay._replace(claimed=relay.claimed ^ bit, sent=relay.sent | bit))
        partition = self._partition(i)
        records = state.topic[partition]
        if relay.refused & bit:
            yield Step(Kind.SYSTEM, ("relay", place, "sends what will be refused", i), sent)
        elif len(records) < self.lag:
            topic = (*state.topic[:partition], (*records, i), *state.topic[partition + 1 :])
            yield Step(Kind.SYSTEM, ("relay", place, "sends", i), sent._replace(topic=topic))
        if not self.guards.marks_after_answer:
            yield from self._fault(("relay", place, "loses on its way to the topic", i), sent)

    def _partition(self, i: int) -> int:
        return ord(self.keys[i]) % self.partitions

    def _settle(self, state: State, place: int, locked: int) -> Iterator[Step]:
        """Mark what was acknowledged; forget what was not: it may or may not be on the topic."""
        relay = state.relays[place]
        yield Step(
            Kind.SYSTEM,
            ("relay", place, "marks", _ids(relay.sent)),
            self._mark(state, place, relay, relay.sent, locked),
        )
        silent = relay.sent if self._may_fail(state) else 0
        while silent:
            known = ~silent
            heard = relay._replace(sent=relay.sent & known, stale=relay.stale & known, refused=relay.refused & known)
            after = self._mark(state, place, heard, heard.sent, locked)
            yield from self._fault(("relay", place, "marks", _ids(heard.sent), "no answer for", _ids(silent)), after)
            silent = (silent - 1) & relay.sent

    def _mark(self, state: State, place: int, relay: Relay, bits: int, locked: int) -> State:
        """Mark ``bits``, remember those that a consumer holds, forget what is not as it was claimed."""
        rows = list(state.rows)
        held = buried = 0
        for i in _ids(bits):
            stale = relay.stale >> i & 1
            if relay.refused >> i & 1:
                if not locked >> i & 1 and not (stale and self.guards.buries_as_claimed):
                    rows[i] = self._move(rows[i], lifecycle.BURY, due=True, parks=self.parks)
                    buried |= 1 << i
            elif stale and self.guards.marks_as_claimed:
                continue
            elif not locked >> i & 1:
                rows[i] = self._move(rows[i], lifecycle.MARK_PUBLISHED, due=True)
            elif rows[i].status in lifecycle.MARK_PUBLISHED.sources and self.guards.remembers_unmarked:
                held |= 1 << i
        after = Relay(
            relay.lease,
            relay.claimed,
            relay.sent & ~bits,
            relay.unmarked & ~bits | held,
            relay.stale & ~(bits & ~held),
            relay.refused & ~bits,
        )
        return _put_back(_with_relay(state._replace(rows=tuple(rows)), place, after), buried)

    # --- consumer ------------------------------------------------------------------------------------------------

    def _consumer(self, state: State, place: int, locked: int) -> Iterator[Step]:
        consumer = state.consumers[place]
        if isinstance(consumer.open, Transaction):
            yield from self._end(state, place, consumer.open)
        elif isinstance(consumer.open, Blame):
            if not locked >> consumer.open.row & 1:
                yield from self._note(state, place, consumer.open)
        elif consumer.todo:
            yield from self._begin(state, place, locked)
        elif consumer.in_hand:
            yield Step(Kind.SYSTEM, ("consumer", place, "commits offsets"), self._commit_offsets(state, place))
        else:
            yield from self._receive(state, place)
        if self._may_fail(state):
            yield from self._disturb(state, place)

    def _disturb(self, state: State, place: int) -> Iterator[Step]:
        consumer = state.consumers[place]
        if consumer.in_hand:
            after = _with_consumer(state, place, Consumer(consumer.owned))
            yield from self._fault(("consumer", place, "crashes"), after)
            again = _again(consumer)
            if again != consumer:
                yield from self._fault(("an outage for consumer", place), _with_consumer(state, place, again))
        for partition in range(self.partitions if self.consumers > 1 else 0):
            bit = 1 << partition
            if consumer.owned & bit:
                lost = consumer._replace(owned=consumer.owned ^ bit, current=consumer.current & ~bit)
                after = _with_consumer(state, place, lost)
                other = state.consumers[1 - place]
                after = _with_consumer(after, 1 - place, other._replace(owned=other.owned | bit))
                yield from self._fault(("consumer", place, "loses partition", partition), after)

    def _receive(self, state: State, place: int) -> Iterator[Step]:
        consumer = state.consumers[place]
        in_hand = tuple(
            records[: self.batch] if consumer.owned >> partition & 1 else ()
            for partition, records in enumerate(state.topic)
        )
        records = sum(in_hand, ())
        if not records:
            return
        current = sum(1 << partition for partition, found in enumerate(in_hand) if found)
        received = consumer._replace(in_hand=in_hand, current=current, todo=(records,))
        after = _with_consumer(state, place, received)
        if not self.guards.commits_after_database:
            after = _with_consumer(self._commit_offsets(after, place), place, received._replace(current=0))
        yield Step(Kind.SYSTEM, ("consumer", place, "receives", records), after)

    def _commit_offsets(self, state: State, place: int) -> State:
        """Commit what is in hand, as far as its partitions stayed with this consumer."""
        consumer = state.consumers[place]
        topic = tuple(
            records[len(consumer.in_hand[partition]) :] if consumer.current >> partition & 1 else records
            for partition, records in enumerate(state.topic)
        )
        return _with_consumer(state._replace(topic=topic), place, Consumer(consumer.owned))

    def _begin(self, state: State, place: int, locked: int) -> Iterator[Step]:
        consumer = state.consumers[place]
        records = consumer.todo[0]
        transaction = self._transaction(state.rows, records)
        if transaction.locked & locked:
            return  # waits until the other one has ended
        if transaction.deliver or transaction.bury or transaction.wait:
            after = consumer._replace(open=transaction)
            does = ("locks", records, "to handle", transaction.deliver)
            yield Step(Kind.SYSTEM, ("consumer", place, *does), _with_consumer(state, place, after))
        else:
            after = _next(consumer)
            yield Step(Kind.SYSTEM, ("consumer", place, "drops", records), _with_consumer(state, place, after))

    def _end(self, state: State, place: int, transaction: Transaction) -> Iterator[Step]:
        consumer = state.consumers[place]
        live = (*transaction.deliver, *transaction.wait, *(i for i, _ in transaction.bury))
        sources = lifecycle.CONSUME.sources
        if self.guards.counts_consumed and any(state.rows[i].status not in sources for i in transaction.deliver):
            after = self._fail(state, place, state.rows[live[0]].attempts, live[0])
            yield Step(Kind.SYSTEM, ("consumer", place, "finds that rows changed"), after)
        else:
            done, breach = self._apply(state, transaction)
            after = _with_consumer(done, place, _next(consumer))
            yield Step(Kind.SYSTEM, ("consumer", place, "commits"), after, breach)
            if self._may_fail(state):
                after = _with_consumer(done, place, _again(consumer))
                yield from self._fault(("consumer", place, "commits and does not learn it"), after, breach)
            if not self.guards.is_atomic:
                after = _with_consumer(state._replace(effects=done.effects), place, Consumer(consumer.owned))
                yield from self._fault(("consumer", place, "crashes between effect and status"), after, breach)
        if any(i in self.poison and not state.rows[i].mended for i in transaction.deliver):
            after = self._fail(state, place, state.rows[live[0]].attempts, live[0])
            yield Step(Kind.FAILURE, ("consumer", place, "fails"), after)
        if self._may_fail(state):
            seen = None if self.guards.excuses_lost_locks else state.rows[live[0]].attempts
            yield from self._fault(("consumer", place, "loses its locks"), self._fail(state, place, seen, live[0]))

    def _apply(self, state: State, transaction: Transaction) -> tuple[State, str]:
        """Do what was planned; say which promise an effect broke."""
        rows, effects, breach = list(state.rows), state.effects, ""
        moved = 0
        for i in transaction.wait:
            rows[i] = self._move(rows[i], lifecycle.WAIT, due=False)
            moved |= 1 << i
        for i, parks in transaction.bury:
            rows[i] = self._move(rows[i], lifecycle.BURY, due=True, parks=parks)
            moved |= 1 << i
        for i in transaction.deliver:
            if effects >> i & 1:
                breach = f"a second effect of {i}"
            for j in range(i):
                if self.keys[j] == self.keys[i] and not (effects | transaction.excused) >> j & 1:
                    breach = f"the effect of {i} before that of {j}"
            effects |= 1 << i
            rows[i] = self._move(rows[i], lifecycle.CONSUME, due=True, attempts=0)
        return _put_back(state._replace(rows=tuple(rows), effects=effects), moved), breach

    def _fail(self, state: State, place: int, attempts: int | None, row: int) -> State:
        consumer = state.consumers[place]
        records = consumer.todo[0]
        if len(records) == 1:
            return _with_consumer(state, place, consumer._replace(open=Blame(row, attempts)))
        middle = len(records) // 2
        todo = (records[:middle], records[middle:], *consumer.todo[1:])
        return _with_consumer(state, place, consumer._replace(open=(), todo=todo))

    def _note(self, state: State, place: int, blame: Blame) -> Iterator[Step]:
        """Write down what happened to an event that failed alone."""
        i, seen = blame
        row = state.rows[i]
        if seen is None:
            what, moved = "has wait", self._move(row, lifecycle.WAIT, due=False)
        elif seen + 1 >= self.max_attempts:
            what, moved = "buries", row
            if row.attempts == seen or not self.guards.buries_seen_attempt:
                moved = self._move(row, lifecycle.BURY, due=True, attempts=row.attempts + 1, parks=self.parks)
        else:
            what, moved = "has come again", row
            if row.attempts == seen or not self.guards.notes_seen_attempt:
                moved = self._move(row, lifecycle.RETRY, due=False, attempts=row.attempts + 1)
        after = _with_consumer(_with_row(state, i, moved), place, _next(state.consumers[place]))
        yield Step(Kind.SYSTEM, ("consumer", place, what, i), after if moved is row else _put_back(after, 1 << i))

    # --- what a consumer decides, by the project's own rules -----------------------------------------------------

    def _transaction(self, rows: tuple[Row, ...], records: tuple[int, ...]) -> Transaction:
        known = self._transactions.get((rows, records))
        if known is None:
            known = self._transactions[rows, records] = self._look(rows, sorted(set(records)))
        return known

    def _look(self, rows: tuple[Row, ...], ids: list[int]) -> Transaction:
        live = [i for i in ids if self._is_live(rows[i])]
        blockers = self._blockers(rows, live) if self.guards.waits_for_predecessor else {}
        locked = [self._locked(i, rows[i]) for i in live]
        plan = make_plan(locked, blockers, read=self._read, parks_key=lambda _event_type: self.parks)
        _check_pauses(plan)
        excused = 0
        for i, row in enumerate(rows):
            if row.status is None or (row.status is Status.DEAD and not row.parks):
                excused |= 1 << i
        return Transaction(
            locked=sum(1 << i for i in ids),
            deliver=tuple(readable.delivery.outbox_id for readable in plan.deliver),
            bury=tuple((burial.row.id, burial.parks_key) for burial in plan.bury),
            wait=tuple(row.id for row, _ in plan.wait),
            excused=excused,
        )

    def _is_live(self, row: Row) -> bool:
        if not self.guards.looks_at_status:
            return True
        return row.status in UNFINISHED and (row.due or row.status is Status.PUBLISHED)

    def _blockers(self, rows: tuple[Row, ...], live: list[int]) -> dict[str, Blocker]:
        """Return the oldest unfinished row of each key before the last of ``live``, and not one of them."""
        blockers: dict[str, Blocker] = {}
        for i in range(max(live, default=0)):
            row, key = rows[i], self.keys[i]
            holds = row.status in UNFINISHED or (row.status is Status.DEAD and row.parks)
            if row.status is Status.DEAD and not self.guards.waits_for_parked:
                holds = False
            if holds and i not in live and key not in blockers and key in {self.keys[j] for j in live}:
                pauses = row.status is Status.PENDING and not row.due
                blockers[key] = Blocker(i, NOW + BACK_OFF if pauses else None, timedelta(0))
        return blockers

    def _locked(self, i: int, row: Row) -> Locked:
        status = row.status or Status.PENDING
        return Locked(i, "event", self.keys[i], status, row.attempts, self.max_attempts, row.due, "", "{}", 2)

    def _read(self, row: Locked) -> Readable:
        if row.id in self.unreadable:
            raise UnreadableError("it cannot be read")
        delivery = Delivery(row.id, str(row.id), row.event_type, "v1", row.message_key, "", _PAYLOAD, 1, "default")
        return Readable(delivery, _HANDLER)


def _without(records: tuple[int, ...], done: int) -> tuple[int, ...]:
    return tuple(i for i in records if not done >> i & 1) if records else records


def _relay_without(relay: Relay, done: int) -> Relay:
    """Take finished rows out of a relay's memory."""
    lease, claimed, sent, unmarked, stale, refused = relay
    if not (claimed | sent | unmarked) & done:
        return relay
    left = ~done
    return Relay(lease, claimed & left, sent & left, unmarked & left, stale & left, refused & left)


def _consumer_without(consumer: Consumer, done: int) -> Consumer:
    """Take the records of finished rows out of a consumer's hands."""
    if not consumer.in_hand:
        return consumer
    in_hand = tuple(_without(records, done) for records in consumer.in_hand)
    if not any(in_hand):
        return Consumer(consumer.owned)
    todo = tuple(left for records in consumer.todo if (left := _without(records, done)))
    is_open = consumer.open and not (isinstance(consumer.open, Blame) and done >> consumer.open.row & 1)
    return Consumer(consumer.owned, in_hand, consumer.current, todo, consumer.open if is_open else ())


class _Nothing(msgspec.Struct):
    """A payload."""


_PAYLOAD: Final = _Nothing()
_HANDLER: Final = Handler(lambda _delivery: None, batch=False)


def _check_pauses(plan: Plan) -> None:
    """Make sure of what ``due=False`` stands for: what waits is due later than now, and later than any claim."""
    for _, blocker in plan.wait:
        until = waits_until(blocker, now=NOW, shortest=SHORTEST, longest=LONGEST)
        if until <= NOW:
            raise AssertionError(f"an event that waits for {blocker} is due again at once")


def _ids(bits: int) -> tuple[int, ...]:
    return _IDS[bits]


_IDS: Final = tuple(tuple(i for i in range(6) if bits >> i & 1) for bits in range(64))


def _distinct(workers: tuple[Any, ...]) -> Iterator[int]:
    """Return the places of workers that differ: what one of two equal ones can do, the other can."""
    for place, worker in enumerate(workers):
        if worker not in workers[:place]:
            yield place


def _again(consumer: Consumer) -> Consumer:
    """Have the batch in hand done again from its beginning."""
    return consumer._replace(todo=(sum(consumer.in_hand, ()),), open=())


def _next(consumer: Consumer) -> Consumer:
    return consumer._replace(todo=consumer.todo[1:], open=())


def _put_back(state: State, bits: int) -> State:
    """Make what relays know of these rows stale: the rows are due later than they were claimed."""
    relays = tuple(
        Relay(lease, claimed, sent, unmarked, stale | bits & (claimed | sent | unmarked), refused)
        for lease, claimed, sent, unmarked, stale, refused in state.relays
    )
    return state._replace(relays=relays)


def _with_heir(state: State, place: int) -> State:
    """Give the lease to the other relay."""
    return _with_relay(state, 1 - place, state.relays[1 - place]._replace(lease=Lease.HELD))


def _with_row(state: State, i: int, row: Row) -> State:
    rows, effects, topic, relays, consumers, faults = state
    return State((*rows[:i], row, *rows[i + 1 :]), effects, topic, relays, consumers, faults)


def _with_relay(state: State, place: int, relay: Relay) -> State:
    rows, effects, topic, relays, consumers, faults = state
    return State(rows, effects, topic, (*relays[:place], relay, *relays[place + 1 :]), consumers, faults)


def _with_consumer(state: State, place: int, consumer: Consumer) -> State:
    rows, effects, topic, relays, consumers, faults = state
    return State(rows, effects, topic, relays, (*consumers[:place], consumer, *consumers[place + 1 :]), faults)
