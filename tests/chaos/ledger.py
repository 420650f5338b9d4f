"""What was put in beside the writers, what people did, and which rows strangers held."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Garbage:
    """A record that fits no row, known by its key."""

    key: bytes
    reason: str
    """What the reason of its rejection begins with."""
    is_acknowledged: bool
    """Whether it must be rejected: the topic has it for certain, and consumers are to read it."""
    is_hidden: bool = False
    """Whether it must not be: it is of an aborted transaction, and consumers read committed ones only."""


@dataclass(frozen=True, slots=True)
class SqlRow:
    """A row that was written by plain SQL, known by its key."""

    key: str
    status: str
    """What it must end as."""
    reason: str
    """What its ``last_error`` begins with."""
    is_certain: bool
    """Whether the database has answered for it."""


@dataclass(slots=True)
class Ledger:
    """What was put in beside the writers, and what people did."""

    garbage: dict[bytes, Garbage] = field(default_factory=dict)
    """By key: several lanes send some."""
    sql_rows: dict[str, SqlRow] = field(default_factory=dict)
    lost_records: set[int] = field(default_factory=set)
    """Rows that said ``published`` without a record."""
    holds: list[Hold] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    """What an operator looked at while Kafka was unavailable."""
    echoes: int = 0
    replayed: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A time in which a row was locked, a worker stood still or a table was missing: other keys must go on."""

    began_at: float
    """Moments are seconds since 1970."""
    ended_at: float
    what: str
    keys: frozenset[str] = frozenset()
    """Those that may wait for it."""
    frozen_pid: int | None = None
    """The worker that stood still: its partitions may take as long as a take-over more."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look of an operator while Kafka was unavailable."""

    what: str
    began_at: float
    """Moments are seconds since 1970."""
    ended_at: float
    limit_s: float
    """For how long it may take on an idle machine."""
    machine_s: float
    """How much of it a busy machine may excuse, at the most."""
    problem: str = ""
    """What was wrong with the answer."""

    @property
    def took_s(self) -> float:
        return self.ended_at - self.began_at
