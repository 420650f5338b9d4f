"""The values that a state is made of, and what becomes of one where a part of it changes."""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple

from outbox.lifecycle import Status

OTHER: Final = 8
"""Added to a row's number: a record with the row's id that another installation sent, and that states no event id."""

EARLIER: Final = 16
"""Added to a row's number: a record that states the event id of an earlier row with the same id."""


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
    interruptions: int = 0
    ends: int = 0
    """How often in a row a process or connection truly ended while the event was at work alone: not in the table."""
    kills: int = 0
    """How many processes its handler has ended: not in the table."""


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
    is_announced: bool = False
    """It is the try that was written down before."""
    strange: int = 0
    """Rows that it changes though none of its records is of them."""


class Announced(NamedTuple):
    """An event of which it was written down that it is at work, with the counts that were written."""

    row: int
    attempts: int
    interruptions: int
    is_stale: bool = False
    """A person replayed the row since."""
    is_over: bool = False
    """Its try came to no end by an outage: it is to be taken back."""


class Blame(NamedTuple):
    """An event that failed alone, about to be noted. ``attempts`` as the transaction saw them, None: a lost lock."""

    row: int
    attempts: int | None
    is_stale: bool = False
    """A person replayed the row since."""
    interruptions: int = 0
    is_announced: bool = False
    """It was the try that was written down before."""
    is_interruption: bool = False
    """Its connection was lost, and others of the database were not."""


class Consumer(NamedTuple):
    """A consumer's memory, and the partitions that it owns (bits)."""

    owned: int
    in_hand: tuple[tuple[int, ...], ...] = ()
    """By partition; empty between batches."""
    current: int = 0
    """Partitions whose records in hand it may still commit."""
    todo: tuple[tuple[int, ...], ...] = ()
    open: tuple[Any, ...] = ()
    """A ``Transaction``, an ``Announced``, a ``Blame``, or nothing."""
    suspect: int = 0
    """Partitions that came from a worker that ended: their next records are done one by one, each announced."""


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


def without(records: tuple[int, ...], done: int) -> tuple[int, ...]:
    """Leave the records that name ``done`` rows out."""
    return tuple(i for i in records if not done >> row_of(i) & 1) if records else records


def row_of(record: int) -> int:
    """Return the row that a record names, whether it is of it or not."""
    return record & 7


def ids_of(bits: int) -> tuple[int, ...]:
    """Return the rows of a set."""
    return _IDS[bits]


_IDS: Final = tuple(tuple(i for i in range(6) if bits >> i & 1) for bits in range(64))


def put_back(state: State, bits: int) -> State:
    """Make what relays know of these rows stale: the rows are due later than they were claimed."""
    relays = tuple(
        Relay(lease, claimed, sent, unmarked, stale | bits & (claimed | sent | unmarked), refused)
        for lease, claimed, sent, unmarked, stale, refused in state.relays
    )
    return state._replace(relays=relays)


def replayed(state: State, i: int) -> State:
    """Make what consumers are about to note of a row stale: the count of its replays is another one."""
    consumers = tuple(
        consumer._replace(open=consumer.open._replace(is_stale=True))
        if isinstance(consumer.open, Blame | Announced) and consumer.open.row == i
        else consumer
        for consumer in state.consumers
    )
    return state._replace(consumers=consumers)


def with_row(state: State, i: int, row: Row) -> State:
    """Put ``row`` in its place."""
    rows, effects, topic, relays, consumers, faults = state
    return State((*rows[:i], row, *rows[i + 1 :]), effects, topic, relays, consumers, faults)


def with_relay(state: State, place: int, relay: Relay) -> State:
    """Put ``relay`` in its place."""
    rows, effects, topic, relays, consumers, faults = state
    return State(rows, effects, topic, (*relays[:place], relay, *relays[place + 1 :]), consumers, faults)


def with_consumer(state: State, place: int, consumer: Consumer) -> State:
    """Put ``consumer`` in its place."""
    rows, effects, topic, relays, consumers, faults = state
    return State(rows, effects, topic, relays, (*consumers[:place], consumer, *consumers[place + 1 :]), faults)


def next_portion(consumer: Consumer) -> Consumer:
    """Go on to what a consumer does next."""
    return consumer._replace(todo=consumer.todo[1:], open=())
