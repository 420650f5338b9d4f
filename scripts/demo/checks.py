"""One thing that was checked about a demo."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scripts.demo.rows import RowsByEvent

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Check:
    """How often something held, of how many, and the first cases where it did not."""

    what: str
    held: int
    of: int
    broken: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.held == self.of and not self.broken


def check_consumed(what: str, event_ids: Collection[str], rows: RowsByEvent) -> Check:
    """Check that each event has one row, and that it is consumed."""
    broken = []
    for event_id in event_ids:
        found = [row.status for row in rows[event_id]]
        if found != ["consumed"]:
            broken.append(f"event {event_id} has rows {found}")
    return check(what, event_ids, broken)


def check(what: str, all_of: Collection[object], broken: Sequence[str]) -> Check:
    """Return the check of ``all_of``, with a word on each case where it does not hold."""
    return Check(what, max(0, len(all_of) - len(broken)), len(all_of), tuple(broken[:_SHOWN]))
