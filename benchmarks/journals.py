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
    error: str


def read_journal(journal: Path) -> list[Transaction]:
    """Return the transactions of a journal."""
    found = []
    for line in journal.read_text().splitlines():
        due, start, end, error = line.split("\t", 3)
        found.append(Transaction(float(due), float(start), float(end), error))
    return found


def has_lines(journal: Path) -> bool:
    """Say whether its writer has begun."""
    return journal.exists() and journal.stat().st_size > 0
