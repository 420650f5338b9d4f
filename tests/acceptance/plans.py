"""What a load does and what came of it: shared by the tests and the processes that publish. Imports no Django."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

Kind = Literal["step", "bulk", "parking", "snapshot"]
Outcome = Literal["committed", "rolled_back", "unknown"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A load: so many threads, each with its own keys and its own transactions, one after the other.

    A key belongs to one thread, as a conversation to one request at a time, so the ids of a key are committed in order.
    """

    prefix: str
    kind: Kind = "step"
    threads: int = 4
    keys: int = 5
    """Keys of each thread."""
    transactions: int = 25
    """Transactions of each thread; 0 goes on until the process is told to stop."""
    events: int = 2
    """A transaction publishes from 1 to this many events."""
    rollbacks: float = 0.2
    """Share of transactions that are rolled back after they published."""
    pause_ms: int = 0
    """Pause between two transactions of a thread."""
    seed: int = 0
    fields: dict[str, Any] = {}
    """Further fields of every event."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one transaction: a line of a load's journal."""

    outcome: Outcome
    event_ids: list[str]


@dataclass(slots=True)
class Journal:
    """Which events must be there, which must not, and of which nobody knows."""

    committed: set[str] = field(default_factory=set)
    rolled_back: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in ``entries``."""
        for entry in entries:
            getattr(self, entry.outcome).update(entry.event_ids)


def read_journal(path: Path) -> list[Entry]:
    """Return the entries of ``path``; a killed process leaves whole lines only."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
