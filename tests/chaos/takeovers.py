"""After every kill of a relay or a consumer: how long until its share was worked on again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.acceptance.probe import trace
from tests.chaos.cluster import Cluster
from tests.chaos.crew import Member, Role
from tests.chaos.evidence import Evidence, Work
from tests.chaos.lanes import Happening
from tests.chaos.standstill import Piece, Span, StandStill, absent, stand_still
from tests.chaos.verdict import Verdict
from tests.chaos.watch import Look
from tests.chaos.writers import ALWAYS

AFTERMATH_S: Final = 6.0
"""How long a trouble may last beyond its end: the longest pause of a worker in an outage, and a little."""

_HUNG_S: Final = 30.0
"""How long an event that hangs or kills is about after it was published, and how long a flood is worked on."""

_REASONS: Final = 4
"""Of excuses, those that are told."""

_IN_THE_WAY: Final = frozenset({"kafka", "database", "kafka-net", "database-net", "floods", "killers"})
_STRANGERS: Final = frozenset(
    {
        "dba-killer",
        "deadlocks",
        "kill-connections",
        "kill-one",
        "kill-queries",
        "statement-limit",
        "stranger-locks",
        "table-missing",
    }
)
_SOUND_KEYS: Final = tuple(f"{name}." for name in ALWAYS)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """One kill, and what became of the share."""

    victim: Member
    killed_at: float
    still: StandStill | None
    """None: it had no share, or there was nothing to do in it."""


@dataclass(slots=True)
class TakeOvers:
    """All of a run, by role."""

    found: dict[Role, list[TakeOver]] = field(default_factory=lambda: {"relay": [], "consumer": []})

    def __iter__(self) -> Iterator[TakeOver]:
        for each in self.found.values():
            yield from each

    def told(self) -> Iterator[str]:
        """Return what the report says."""
        for role, found in self.found.items():
            stills = [each.still for each in found if each.still is not None]
            measured = [still.took_s for still in stills if still.is_in_time or still.is_too_long]
            excused = [still for still in stills if not (still.is_in_time or still.is_too_long)]
            line = f"take-overs from a killed {role}: {len(measured)} measured"
            if measured:
                line += f", the longest {max(measured):.1f} s"
            line += f"; {len(excused)} excused"
            if excused:
                reasons = Counter(reason for still in excused for reason in still.excuses or ("a busy machine",))
                often = ", ".join(reason for reason, _ in reasons.most_common(_REASONS))
                line += f", the longest {max(still.took_s for still in excused):.1f} s ({often})"
            yield f"{line}; {len(found) - len(stills)} had nothing to do"


def take_overs(cluster: Cluster, evidence: Evidence, happenings: Sequence[Happening]) -> TakeOvers:
    """Measure them, by what rows and looks tell."""
    found = TakeOvers()
    members = cluster.crew.members
    sound = {service: list(sound_works(evidence, works)) for service, works in evidence.works.items()}
    for victim in members:
        if victim.fate != "killed" or victim.came_at is None or victim.left_at is None:
            continue
        killed_at = victim.left_at
        if victim.role == "relay":
            share = cluster.watch.owned_by(victim.worker.pid, before=killed_at)
            parts = frozenset(shard for service, shard in share if service == victim.service)
            pieces = list(taken_leases(victim, parts, cluster.watch.looks, members))
            waited_s: Callable[[float, float], float] = cluster.watch.waited_s
        else:
            works = sound[victim.service]
            parts = partitions_of(victim, works, at=killed_at)
            pieces = [Piece(work.partition, work.published_at, work.consumed_at, work.event_id) for work in works]
            waited_s = with_slow_handlers(cluster.watch.waited_s, evidence, victim.service)
        spans = [
            *_troubles(victim, happenings, cluster.began_at),
            *_absences(victim, killed_at, members),
        ]
        still = stand_still(killed_at, parts, pieces, spans, waited_s)
        found.found[victim.role].append(TakeOver(victim, killed_at, still))
    return found


def judge_take_overs(verdict: Verdict, found: TakeOvers) -> None:
    """Check that none took too long while nothing was in the way."""
    for each in found:
        still = each.still
        if still is None or not (still.is_in_time or still.is_too_long):
            continue
        verdict.checked[9] += 1
        if still.is_too_long:
            piece, stretch = still.piece, still.stretch
            part = f"{'shard' if each.victim.role == 'relay' else 'partition'} {piece.part}"
            at_s, until_s = stretch.began_at - each.killed_at, stretch.ended_at - each.killed_at
            verdict.note(
                9,
                f"the share of the {each.victim} was not taken over in time: its {part} stood still for "
                f"{still.took_s:.1f} s, until {piece.what}. From {at_s:.1f} to {until_s:.1f} s after the kill nothing "
                f"was in the way, and the machine and slow handlers account for {stretch.waited_s:.1f} s of that. "
                f"In the way at other times: {', '.join(still.excuses) or 'nothing'}",
                [piece.what] if each.victim.role == "consumer" else (),
            )


# --- what was done in a share ------------------------------------------------------------------------------------


def taken_leases(
    victim: Member, parts: Iterable[int], looks: Iterable[Look], members: Sequence[Member]
) -> Iterator[Piece]:
    """Return, for each shard, the first look at which a living relay held its lease."""
    killed_at = victim.left_at or math.inf
    left = set(parts)
    for look in looks:
        if look.at <= killed_at:
            continue
        alive = {each.worker.pid: each for each in members if (each.left_at or math.inf) > look.at}
        for shard in sorted(left):
            holder = look.holders.get((victim.service, shard))
            if holder in alive:
                left.discard(shard)
                yield Piece(shard, killed_at, look.at, f"the {alive[holder]} had it")
    for shard in left:
        yield Piece(shard, killed_at, math.inf, "nobody had it")


def partitions_of(member: Member, works: Iterable[Work], *, at: float) -> frozenset[int]:
    """Return the partitions in which nobody had done anything at a moment since a consumer did."""
    came_at = member.came_at or math.inf
    latest: dict[int, Work] = {}
    for work in sorted(works, key=lambda work: work.consumed_at):
        if came_at <= work.consumed_at <= at:
            latest[work.partition] = work
    return frozenset(part for part, work in latest.items() if work.pid in {None, member.worker.pid})


def sound_works(evidence: Evidence, works: Iterable[Work]) -> Iterator[Work]:
    """Return what nothing of its own holds up: no attempts that fail, no predecessor that is stuck."""
    stuck = {row.key for row in evidence.rows["probe"] if row.id in evidence.ledger.lost_records}
    for work in works:
        is_sound = work.key.startswith(_SOUND_KEYS) and not work.retry_count and work.key not in stuck
        if is_sound and work.published_at < math.inf:
            yield work


# --- what was in the way -----------------------------------------------------------------------------------------


def _troubles(victim: Member, happenings: Iterable[Happening], began_at: float) -> Iterator[Span]:
    for happening in happenings:
        fault = happening.fault
        is_pause = fault.name == f"pause-{victim.role}" and happening.note in {"", victim.service}
        if happening.was_tried and (fault.lane in _IN_THE_WAY or fault.name in _STRANGERS or is_pause):
            lasts_s = _HUNG_S if fault.lane in {"killers", "floods"} else AFTERMATH_S
            yield Span(began_at + happening.began_s, began_at + happening.ended_s + lasts_s, fault.name)


def _absences(victim: Member, killed_at: float, members: Iterable[Member]) -> Iterator[Span]:
    """Return when nobody was there to take over, and when somebody went who might have been about to."""
    same = [each for each in members if (each.role, each.service) == (victim.role, victim.service)]
    others = [each for each in same if each is not victim and each.came_at is not None]
    presence = [(each.came_at or math.inf, each.left_at or math.inf) for each in others]
    yield from absent(presence, since=killed_at, until=math.inf, why=f"no other {victim.role} was there")
    for each in others:
        if each.left_at is not None and each.left_at > killed_at:
            yield Span(each.left_at, each.left_at + 1e-6, f"another {victim.role} went")
        if each.kept_lock is not None and each.kept_lock[1] > killed_at:
            yield Span(*each.kept_lock, f"a handler of another {victim.role} kept the interpreter's lock")
        for began_at, ended_at in each.froze:
            if ended_at > killed_at:
                yield Span(began_at, ended_at, f"another {victim.role} was frozen")


def with_slow_handlers(
    waited_s: Callable[[float, float], float], evidence: Evidence, service: str
) -> Callable[[float, float], float]:
    """Count the time of handlers that take it: a batch is committed when all its events are done."""
    runs: Counter[int] = Counter()
    naps: dict[float, float] = defaultdict(float)
    if service == "probe":
        runs.update(mark.outbox_id for mark in trace.read(evidence.installation.trace_path) if mark.what == "begin")
        for work in evidence.works["probe"]:
            told = evidence.told.get(work.id)
            if told is not None and told.sleep_s:
                naps[work.consumed_at] += told.sleep_s * runs[work.id]

    def waited(began_at: float, ended_at: float) -> float:
        slept_s = sum(nap for at, nap in naps.items() if began_at < at < ended_at + AFTERMATH_S)
        return min(waited_s(began_at, ended_at) + slept_s, ended_at - began_at)

    return waited
