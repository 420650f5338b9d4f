"""While a stranger holds a row, or a worker stands still: how long the sound events of other keys took."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.crew import Member
from tests.chaos.delays import LIMIT_S, Delays, Wait, by_hold, measure
from tests.chaos.evidence import Evidence
from tests.chaos.kinds import KINDS
from tests.chaos.lanes import Happening
from tests.chaos.ledger import Hold
from tests.chaos.standstill import Span
from tests.chaos.takeovers import AFTERMATH_S, partitions_of, sound_works, with_slow_handlers
from tests.chaos.verdict import Verdict

_REBALANCE_S: Final = 10.0
"""A worker that comes or goes moves partitions and shards."""

_HUNG_S: Final = 30.0
"""How long an event that hangs or kills is about, with its pauses, after it was published."""

_MACHINE_S: Final = LIMIT_S
"""A busy machine excuses as much again and no more: quiet times are short."""

_LASTS_S: Final[dict[str, float]] = {
    "kafka": AFTERMATH_S,
    "database": AFTERMATH_S,
    "kafka-net": AFTERMATH_S,
    "database-net": AFTERMATH_S,
    "relays": _REBALANCE_S,
    "consumers": _REBALANCE_S,
    "floods": _HUNG_S,
    "killers": _HUNG_S,
}
"""How long beyond its end a fault of a lane may be in the way."""

_IN_THE_WAY: Final[dict[str, float]] = {
    "kill-connections": AFTERMATH_S,
    "kill-queries": AFTERMATH_S,
    "kill-one": AFTERMATH_S,
    "dba-killer": AFTERMATH_S,
    "statement-limit": AFTERMATH_S,
    "stranger-locks": AFTERMATH_S,
    "deadlocks": AFTERMATH_S,
    "pause-relay": AFTERMATH_S,
    "pause-consumer": AFTERMATH_S,
}
"""The same of kinds whose lane has others that are not in the way."""


def delays(cluster: Cluster, evidence: Evidence, happenings: Sequence[Happening]) -> Delays:
    """Measure them, by what rows tell."""
    works = list(sound_works(evidence, evidence.works["probe"]))
    members = [member for member in cluster.crew.members if member.role == "relay" or member.service == "probe"]
    waits = [Wait(work.event_id, work.key, work.partition, work.created_at, work.consumed_at) for work in works]
    by_pid = {member.worker.pid: member for member in members}

    def held_by(hold: Hold) -> Collection[int]:
        member = by_pid[hold.frozen_pid or 0]
        return partitions_of(member, works, at=hold.began_at)

    freezes = [hold for hold in cluster.ledger.holds if hold.frozen_pid is not None]
    rows = [hold for hold in cluster.ledger.holds if hold.frozen_pid is None]
    spans = [*_spans(happenings, cluster.began_at), *_moves(members)]
    frozen = [Span(hold.began_at, hold.ended_at + _REBALANCE_S, hold.what) for hold in freezes]

    def machine_s(began_at: float, ended_at: float) -> float:
        return min(cluster.watch.waited_s(began_at, ended_at), _MACHINE_S)

    waited_s = with_slow_handlers(machine_s, evidence, "probe")
    found = measure(waits, rows, [*spans, *frozen], held_by=held_by, waited_s=waited_s)
    found.add(measure(waits, freezes, spans, held_by=held_by, waited_s=waited_s))
    return found


def judge_delays(verdict: Verdict, found: Delays) -> None:
    """Check that nobody waited too long for what is not theirs."""
    verdict.checked[5] += found.measured
    for hold, delays in by_hold(found.too_long):
        worst = max(delays, key=lambda delay: delay.stretch.blamed_s)
        verdict.note(
            5,
            f"{hold.what} for {hold.ended_at - hold.began_at:.1f} s held up {len(delays)} events of other keys for "
            f"more than {LIMIT_S:g} s, at the most for {worst.stretch.blamed_s:.1f} s in which nothing else was in the "
            f"way (partition {worst.wait.partition}, key {worst.wait.key}; {worst.limit_s:g} s are allowed there)",
            [worst.wait.event_id],
        )


def told(found: Delays) -> Iterator[str]:
    """Return what the report says."""
    yield (
        f"events of other keys while a row was held or a worker stood still: {found.measured} measured, "
        f"{found.undisturbed} of them with nothing else in the way (the longest {found.longest_s:.1f} s), "
        f"{len(found.too_long)} too late; {found.excused} excused"
    )


def _spans(happenings: Iterable[Happening], began_at: float) -> Iterator[Span]:
    for happening in happenings:
        name = happening.fault.name
        lasts_s = _IN_THE_WAY.get(name, _LASTS_S.get(KINDS[name].lane))
        is_elsewhere = name.startswith("pause-") and happening.note == "agent"
        if happening.was_tried and lasts_s is not None and not is_elsewhere:
            yield Span(began_at + happening.began_s, began_at + happening.ended_s + lasts_s, name)


def _moves(members: Iterable[Member]) -> Iterator[Span]:
    for member in members:
        for at in (member.came_at, member.left_at):
            if at is not None:
                yield Span(at - _REBALANCE_S, at + _REBALANCE_S, f"a {member.role} came or went")
        if member.kept_lock is not None:
            yield Span(*member.kept_lock, f"a handler of a {member.role} kept the interpreter's lock")
