"""What is measured, how often and of what size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a run."""

    events: int
    payload: int
    """Bytes of the payload column."""
    processes: tuple[int, ...]
    """How many relays and consumers the curves have."""
    repeats: int
    seconds: float
    """How long a phase takes that ends by the clock."""
    quick: bool
    """Small, and only what was counted is judged."""
    keep: bool

    @property
    def keys(self) -> int:
        return keys_of(self.events)

    @property
    def consumed(self) -> int:
        """Return how many rows lie beside a backlog, consumed and not pruned yet: four times as many."""
        return 4 * self.events


def keys_of(events: int) -> int:
    """Return how many keys so many events have, as with many conversations at a time."""
    return min(5_000, max(events // 5, 1))
