"""What a row is besides its status, each defined once: due, blocking its key. Pure: texts of SQL and their parameters.

A definition that an index answers in parts is given as its branches, each of which one index serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from outbox.lifecycle import UNFINISHED, Status

Branch = tuple[str, Sequence[object]]
"""A condition and its parameters."""

FIRST_MOMENT: Final = "'1000-01-01'"
"""The first that MySQL's columns hold; below are its zero dates, which it takes for no parameter, and say no more than
NULL."""


def due_branches(moment: str) -> tuple[str, str]:
    """Return the two ways in which a row is due at ``moment``, an expression or a placeholder."""
    return "next_retry_at IS NULL", f"next_retry_at <= {moment}"


def due(moment: str) -> str:
    """Return the condition that a row is due at ``moment``; without a due time it always is."""
    return f"({' OR '.join(due_branches(moment))})"


DATED: Final = f"next_retry_at >= {FIRST_MOMENT}"
UNDATED: Final = f"(next_retry_at IS NULL OR next_retry_at < {FIRST_MOMENT})"
"""A row that does not say when it is due: it is."""

PARKS_ITS_KEY: Final[Branch] = ("status = %s AND parks_key = %s", (Status.DEAD, True))
"""A dead row that a person has to decide about before the later events of its key go on."""

BLOCKS_ITS_KEY: Final[tuple[Branch, ...]] = (("status IN (%s, %s)", UNFINISHED), PARKS_ITS_KEY)
"""A row that holds back the later events of its key: it is unfinished, or it parks its key."""
