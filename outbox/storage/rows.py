"""What goes into the repository and what comes out of it: rows as publishers, relays and consumers see them. Pure.

What a batch has hundreds of is a msgspec struct: it is made in a tenth of the time that a frozen dataclass takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from outbox.exceptions import InvalidEventError
from outbox.wire.envelope import EVENT_ID_MAX_LENGTH


@dataclass(frozen=True, slots=True)
class NewRow:
    """An event to insert; the database fills in the rest. An empty ``event_id`` states none.

    :raises InvalidEventError: the column cannot hold ``event_id``.
    """

    event_type: str
    message_key: str
    payload: bytes
    max_retry: int
    traceparent: str = ""
    event_id: str = ""

    def __post_init__(self) -> None:
        if len(self.event_id) > EVENT_ID_MAX_LENGTH or "\x00" in self.event_id:
            raise InvalidEventError(
                self.event_type,
                field="event_id",
                reason=f"{self.event_id[:32]!r}… has {len(self.event_id)} characters or holds a NUL; at most "
                f"{EVENT_ID_MAX_LENGTH} are allowed, and no NUL",
            )


class Keyed(Protocol):
    """A row as the search for what goes before it needs it."""

    @property
    def id(self) -> int: ...

    @property
    def message_key(self) -> str: ...


Counts = Mapping[int, tuple[int, int]]
"""By row id, how often it was put back and how often tried; a row that is not named, never."""
NEVER_PUT_BACK: Final[Counts] = {}


class Due(msgspec.Struct, frozen=True, gc=False):
    """A row to send. ``payload`` is None where it is longer than the claim's limit: see ``payload_of``."""

    id: int
    event_type: str
    message_key: str
    payload: bytes | None
    traceparent: str
    event_id: str = ""
    published_for: timedelta | None = None
    """How long it was published before it was sent again; None for a row that is not sent again as stuck."""
    put_back_count: int = 0
    retry_count: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Return what changes when the row is put back, by us and by other software: the same ones mean that it was
        not."""
        return self.put_back_count, self.retry_count


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows due at ``claimed_at``, in the order of their ids. Marks are raw database values."""

    rows: list[Due]
    claimed_at: Any = None
    last: tuple[Any, int] | None = None
    """Where the next claim goes on; None when it has to start from the oldest row."""
    is_cut: bool = False
    """More rows were due, and their payloads were too much for one claim."""

    @property
    def counts(self) -> Counts:
        """Return what tells later whether a row is still as it was claimed."""
        return {row.id: row.counts for row in self.rows if row.put_back_count or row.retry_count}


@dataclass(frozen=True, slots=True)
class Marked:
    """What one attempt to mark rows did."""

    count: int
    held: list[int]
    """Rows that are still as they were claimed and that somebody else has locked: mark them later."""


class Locked(msgspec.Struct, frozen=True, gc=False):
    """A row as its consumer locked it."""

    id: int
    event_type: str
    message_key: str
    status: str
    retry_count: int
    replay_count: int
    max_retry: int
    is_due: bool
    traceparent: str
    payload: bytes | None
    payload_length: int
    interruptions: int = 0
    event_id: str = ""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return what each try or replay changes: the same ones mean that none came in between."""
        return self.retry_count, self.replay_count, self.interruptions


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What a row is, whatever becomes of it."""

    event_type: str
    message_key: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """The oldest unfinished row of a key."""

    id: int
    due_at: datetime | None
    """When it comes again; None when nobody knows: it is on its way, or parked until a person decides."""
    unchanged_for: timedelta
    is_sent: bool = False
    """Its record is on its way, as far as its row says."""
    is_deferred: bool = False
    """It was put back, by no doing of its own: behind another one, or because of locks."""


@dataclass(frozen=True, slots=True)
class Predecessors:
    """What goes before the rows of a batch."""

    blockers: dict[str, Blocker] = field(default_factory=dict)
    """By key, the oldest unfinished row that is not in the batch."""
    blocked_keys: list[int] = field(default_factory=list)
    """Ids of the notes (``BlockedKey``) of those of its keys that are blocked."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What to note on a row that failed."""

    reason: str
    error_class: str = ""
    traceback: str | None = None


@dataclass(slots=True)
class Pruned:
    """What one step of pruning did."""

    deleted: int = 0
    last_id: int | None = None
    """Where the next step goes on; None at the end."""
