"""What a steady writer wrote down of its transactions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of a writer; moments in monotonic seconds."""

    due: float
    start: float
    end: float
    nothing_s: float
    """How long a statement took that does nothing, right after it: what it costs to be served at all."""
    error: str


def read_journal(journal: Path) -> list[Transaction]:
    """Return the transactions of a journal."""
    found = []
    for line in journal.read_text().splitlines():
        due, start, end, nothing_s, error = line.split("\t", 4)
        found.append(Transaction(float(due), float(start), float(end), float(nothing_s), error))
    return found


def has_lines(journal: Path) -> bool:
    """Say whether its writer has begun."""
    return journal.exists() and journal.stat().st_size > 0
