"""Whether what an operator looked at while Kafka was unavailable answered in time, and said what is the matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.kinds import KINDS
from tests.chaos.lanes import Happening
from tests.chaos.ledger import Look
from tests.chaos.standstill import Span
from tests.chaos.verdict import Verdict

_AFTERMATH_S: Final = 3.0
"""A server needs a moment until it serves all again; a connection that was killed is replaced at once."""

_IN_THE_WAY: Final = frozenset({"database", "database-net", "tables"})
_KILLS: Final = frozenset({"kill-connections", "kill-queries", "kill-one", "dba-killer", "statement-limit"})


@dataclass(slots=True)
class Looks:
    """All of a run."""

    longest_s: dict[str, float] = field(default_factory=dict)
    """Of those that were measured, by what was looked at."""
    measured: int = 0
    excused: int = 0
    """Something was wrong with the database meanwhile."""
    slow: list[Look] = field(default_factory=list)
    wrong: list[Look] = field(default_factory=list)

    def told(self) -> Iterator[str]:
        """Return what the report says."""
        longest = ", ".join(f"{what} {took_s:.1f} s" for what, took_s in sorted(self.longest_s.items()))
        yield (
            f"looks of an operator while Kafka was unavailable: {self.measured} measured, {len(self.slow)} too late, "
            f"{len(self.wrong)} with a wrong answer; {self.excused} excused; the longest: {longest or 'none'}"
        )


def operators_looks(cluster: Cluster, happenings: Iterable[Happening]) -> Looks:
    """Measure them."""
    spans = list(troubles_of_database(happenings, began_at=cluster.began_at))
    return measure_looks(cluster.ledger.looks, spans, waited_s=cluster.watch.waited_s)


def troubles_of_database(happenings: Iterable[Happening], *, began_at: float) -> Iterator[Span]:
    """Return when a look may have been late or wrong because of the database."""
    for each in happenings:
        name = each.fault.name
        if each.was_tried and (name in _KILLS or KINDS[name].lane in _IN_THE_WAY):
            lasts_s = 0.0 if name in _KILLS else _AFTERMATH_S
            yield Span(began_at + each.began_s, began_at + each.ended_s + lasts_s, name)


def measure_looks(
    looks: Sequence[Look], spans: Collection[Span], *, waited_s: Callable[[float, float], float]
) -> Looks:
    """Hold looks against their limits; ``waited_s`` says for how much of a time the machine kept everybody waiting."""
    found = Looks()
    for look in looks:
        if any(span.began_at < look.ended_at and span.ended_at > look.began_at for span in spans):
            found.excused += 1
            continue
        found.measured += 1
        found.longest_s[look.what] = max(found.longest_s.get(look.what, 0.0), look.took_s)
        if look.problem:
            found.wrong.append(look)
        elif look.took_s - min(waited_s(look.began_at, look.ended_at), look.machine_s) > look.limit_s:
            found.slow.append(look)
    return found


def judge_looks(verdict: Verdict, found: Looks) -> None:
    """Check that all answered in time, and rightly."""
    verdict.checked[10] += found.measured
    for look in found.wrong:
        verdict.note(10, f"{look.what} while Kafka was unavailable: {look.problem}")
    for look in found.slow:
        allowed = f"{look.limit_s:g} s are allowed"
        verdict.note(10, f"{look.what} took {look.took_s:.1f} s while Kafka was unavailable; {allowed}")
