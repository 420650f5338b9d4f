"""Looks, again and again, at what leaves no trace: who holds which lease, and how long the machine keeps us waiting."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LEASES: Final = (
    "SELECT service, shard, owner, expires_at > UTC_TIMESTAMP(6) FROM outbox_shard_leases"
    " WHERE role = 'relay' AND owner <> ''"
)

MOST_WAITED_S: Final = 20.0
"""A take-over is a matter of timers; its own work takes less than a second of a core, which a busy machine stretches
to many. Beyond that the machine is not to blame: somebody waits all the time on one that is always busy."""

_PRESSURE: Final = tuple(Path("/proc/pressure") / name for name in ("cpu", "io", "memory"))


@dataclass(frozen=True, slots=True)
class Look:
    """Whose a shard was at one moment: the process of the relay, by service and shard."""

    at: float
    owners: Mapping[tuple[str, int], int]
    """Also by leases that have run out: in an outage nobody may have come to renew or to take them."""
    holders: Mapping[tuple[str, int], int]


class Watch:
    """All looks of a run. Moments are seconds since 1970."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._moments: list[float] = []
        self._stalled_s: list[float] = []

    def note_leases(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Take in what ``LEASES`` found."""
        found = {(service, shard): (process_of(owner), holds) for service, shard, owner, holds in rows}
        owners = {share: pid for share, (pid, _) in found.items()}
        holders = {share: pid for share, (pid, holds) in found.items() if holds}
        self.looks.append(Look(time.time(), owners, holders))

    def note_pressure(self) -> None:
        """Take in for how long processes have waited for a core or a disk; a machine may not say so."""
        self._stalled_s.append(sum(stalled_s(path.read_text()) for path in _PRESSURE if path.exists()))
        self._moments.append(time.time())

    def waited_s(self, began_at: float, ended_at: float) -> float:
        """Return for how much of a time the machine kept somebody waiting, at most, by the looks around it."""
        if not self._moments:
            return 0.0
        first = max(0, bisect_right(self._moments, began_at) - 1)
        last = min(len(self._moments) - 1, bisect_left(self._moments, ended_at))
        return min(self._stalled_s[last] - self._stalled_s[first], ended_at - began_at, MOST_WAITED_S)

    def owned_by(self, pid: int, *, before: float) -> frozenset[tuple[str, int]]:
        """Return what was a process's when it was last looked at."""
        owners = next((look.owners for look in reversed(self.looks) if look.at < before), {})
        return frozenset(share for share, owner in owners.items() if owner == pid)


def process_of(owner: str) -> int:
    """Return the process id that a worker's name contains."""
    return int(owner.split(":")[1])


def stalled_s(pressure: str) -> float:
    """Return for how long some process has waited since the machine started, of a file in /proc/pressure."""
    some = next((line for line in pressure.splitlines() if line.startswith("some")), "total=0")
    return int(some.rpartition("total=")[2]) / 1e6
