"""Which fault begins when, made up front from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tests.chaos.kinds import KINDS, STANDING


@dataclass(frozen=True, slots=True)
class TimedFault:
    """One fault of a run."""

    at_s: float
    name: str
    lane: str
    length_s: float
    dice: float
    """From [0, 1): decides what is left open, such as which worker is hit."""


_GAPS_S: Final = {
    "relays": (5.0, 13.0),
    "consumers": (5.0, 13.0),
    "kafka": (12.0, 21.0),
    "database": (12.0, 21.0),
    "kafka-net": (10.0, 22.0),
    "database-net": (10.0, 22.0),
    "sql": (3.0, 8.0),
    "topic": (3.0, 8.0),
    "floods": (30.0, 50.0),
    "rows": (5.0, 12.0),
    "people": (3.0, 8.0),
    "writers": (15.0, 30.0),
    "handlers": (4.0, 10.0),
    "killers": (8.0, 14.0),
    "row-holders": (5.0, 12.0),
    "outbox-holders": (5.0, 12.0),
    "hosts": (8.0, 20.0),
    "tables": (20.0, 45.0),
}
"""How long a lane rests between two faults: work has to go on in between, or nothing is shown."""

_THROUGH_QUIET: Final = frozenset({STANDING, "row-holders", "outbox-holders", "hosts", "tables"})
"""Faults that must not hold up others: how long they do is measured while nothing else goes wrong."""

_QUIET_EVERY_S: Final = 150.0
_QUIET_S: Final = 30.0
"""The end of each such period is free of all other faults."""

_CALM_S: Final = 3.0
"""Nothing happens at the very beginning and nothing new at the end."""

FULL_RUN_MINUTES: Final = 25.0
LEAST_INJECTED: Final = 10
"""A run of ``FULL_RUN_MINUTES`` injects each kind at least so often; more are planned, as some find nothing to hit."""


def plan(seed: int, minutes: float, faults: Collection[str] = tuple(KINDS)) -> list[TimedFault]:
    """Return the faults of a run in the order of their beginnings.

    The same arguments give the same list. Each kind of a lane comes once before one comes again, and leaving out the
    faults of one lane changes nothing in the others.

    :raises ValueError: names the faults that do not exist.
    """
    if unknown := sorted(set(faults) - KINDS.keys()):
        raise ValueError(f"there is no fault {', '.join(unknown)}")
    chosen = [name for name in KINDS if name in faults]
    found = [
        TimedFault(0.0, name, STANDING, minutes * 60, random.Random(f"{seed}/{name}").random())
        for name in chosen
        if KINDS[name].lane == STANDING
    ]
    for lane in _GAPS_S:
        names = [name for name in chosen if KINDS[name].lane == lane]
        if names:
            found += _lane(random.Random(f"{seed}/{lane}"), names, lane, end_s=minutes * 60 - _CALM_S)
    return sorted(found, key=lambda fault: (fault.at_s, fault.name))


def quiet_windows(end_s: float) -> Iterator[tuple[float, float]]:
    """Return the times in which only what must not hold up others goes wrong."""
    at_s = _QUIET_EVERY_S
    while at_s - _QUIET_S < end_s:
        yield at_s - _QUIET_S, at_s
        at_s += _QUIET_EVERY_S


def rare(counts: Mapping[str, int], *, minutes: float, faults: Collection[str]) -> list[str]:
    """Return the kinds that a full run should have injected more often; none for a shorter run."""
    if minutes < FULL_RUN_MINUTES:
        return []
    return [name for name in KINDS if name in faults and counts.get(name, 0) < LEAST_INJECTED]


def _lane(dice: random.Random, names: list[str], lane: str, *, end_s: float) -> list[TimedFault]:
    """Return the faults of one lane: none overlaps another, none lasts beyond ``end_s``."""
    gap_s = _GAPS_S[lane]
    windows = [] if lane in _THROUGH_QUIET else list(quiet_windows(end_s))
    found: list[TimedFault] = []
    bag: list[str] = []
    at_s = _CALM_S + dice.uniform(0, gap_s[1])
    while True:
        if not bag:
            bag = dice.sample(names, len(names))
        name = bag.pop()
        length_s = dice.uniform(KINDS[name].shortest_s, KINDS[name].longest_s)
        for begin_s, until_s in windows:
            if at_s < until_s and at_s + length_s > begin_s:
                at_s = until_s + dice.uniform(0, gap_s[0])
        if at_s + length_s > end_s:
            return found
        found.append(TimedFault(round(at_s, 2), name, lane, round(length_s, 2), dice.random()))
        at_s += length_s + dice.uniform(*gap_s)
