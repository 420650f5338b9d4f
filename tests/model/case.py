"""A case: what there is in it, what can happen there, and which guards are on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from outbox.lifecycle import Transition
from tests.model.state import Kind, Row, State, Step, Transaction


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
    notes_seen_replay: bool = True
    """Neither is noted on a row that was replayed since the consumer saw it."""
    buries_as_claimed: bool = True
    """The relay buries what the broker refused only as it was claimed."""
    excuses_lost_locks: bool = True
    """A transaction that lost its locks costs no attempt."""
    redelivers: bool = True
    announces: bool = True
    """That a suspect event is at work is written down before its handler is called."""
    tries_as_announced: bool = True
    """It is called only as long as its row is as it was written down."""
    forgets_interruptions: bool = True
    """Any orderly end of an event sets its interruptions back to 0."""
    withdraws: bool = True
    """What was written down is taken back after an outage."""
    notes_seen_interruptions: bool = True
    """What became of an event is noted only on a row that has as many interruptions as the consumer saw."""
    suspects_partitions: bool = True
    """Who takes a partition over from a worker that ended does its next records one by one."""
    sets_others_aside: bool = True
    """The consumer looks up no row for a record of another installation."""
    matches_event_ids: bool = True
    """It takes no record for a row's that states another event id than the row."""
    repeats_own_records: bool = True
    """Of a batch that failed, a row's own record is done again, and not another one that names the row."""


@dataclass(frozen=True)
class Case:
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
    killers: frozenset[int] = frozenset()
    """Rows whose handler always ends its process."""
    max_interruptions: int = 0
    """So many in a row make an event dead; 0: they are left out of the case."""
    most_kills: int = 0
    """Take more processes that one killer ends for a breach."""
    parks: bool = False
    """A death holds back its key until the operator decides."""
    replays: bool = False
    mends: bool = False
    """The operator edits what he replays: then it can be handled, and the broker takes it."""
    loses_topic: bool = False
    strangers: tuple[int, ...] = ()
    """What records that are of no row here may come with the id of any row: ``OTHER``, ``EARLIER``, or both."""
    steals: bool = False
    """Another installation in the consumer group may receive records, and commit them as its own."""
    forgets_done: bool = False
    """Leave out the records of rows that are done for good: whoever receives one drops it (shown without this)."""
    expects_all_attempts: bool = True
    """Take an event that dies before its last attempt for a breach."""
    expects_single_records: bool = False
    """Take a second record of a row behind the offset for a breach; true of cases where nothing goes wrong."""
    guards: Guards = field(default_factory=Guards)
    transactions: dict[Any, Transaction] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What was planned already, by rows and records."""

    def may_fail(self, state: State) -> bool:
        """Say whether there may be another fault."""
        return self.faults is None or state.faults > 0

    def fault(self, label: tuple[Any, ...], after: State, breach: str = "", kind: Kind = Kind.FAULT) -> Iterator[Step]:
        """Return the step that is a fault, unless all of them have happened."""
        if self.faults is None:
            yield Step(kind, label, after, breach)
        elif after.faults:
            yield Step(kind, label, after._replace(faults=after.faults - 1), breach)

    def move(self, row: Row, transition: Transition, **changes: Any) -> Row:
        """Apply ``transition`` where it is legal, as the repository's conditional update does."""
        if row.status not in transition.sources and self.guards.moves_from_sources:
            return row
        return row._replace(status=transition.target, **changes)
