"""Places in a table that is read a page at a time: a row's position, the gap beside it, and what was found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

LATE: Final = "late"
"""Stands in a position for a moment behind the end of the calendar, such as PostgreSQL's infinity."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a row stands in its stream. ``moment`` is the database's own text, None where it is NULL or not used.

    It is empty where the column holds what is no moment, and ``LATE`` where that is behind all moments.
    """

    moment: str | None
    id: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The place right below (or, not ``below``, right above) the row at a position."""

    at: Position
    below: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A row of a stream; ``rank`` orders the rows of all streams, the largest first."""

    position: Position
    rank: Any


@dataclass(frozen=True, slots=True)
class Slice:
    """What a stream found. ``stopped`` is where it gave up looking; None when it has enough or came to its end."""

    rows: Sequence[Found]
    stopped: Found | None = None
