"""What a run says at its end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.chaos.evidence import Evidence
from tests.chaos.kinds import KINDS, STANDING
from tests.chaos.lanes import Happening
from tests.chaos.verdict import PROMISES, Verdict

_HISTORIES = 3
"""Events whose history is told for each breach."""

_BREACHES = 20
"""Breaches of one promise that are told; the others are counted."""


def injected(happenings: Sequence[Happening], evidence: Evidence) -> Counter[str]:
    """Count how often each kind was injected; of those that last for the whole run, the events that had them."""
    counts = Counter(happening.fault.name for happening in happenings if happening.outcome == "done")
    for row in evidence.rows["probe"]:
        writer = row.key.partition(".")[0]
        told = evidence.told[row.id]
        if writer in KINDS and KINDS[writer].lane == STANDING:
            counts[writer] += writer == "oversize" or (told is not None and told.is_bad)
    for name, kind in KINDS.items():
        if kind.lane == STANDING and counts[name]:
            counts[name] -= 1  # the start of its writer
    return counts


def impossible_kinds(happenings: Sequence[Happening]) -> dict[str, str]:
    """Return the kinds that this machine cannot inject, and why."""
    return {each.fault.name: each.note for each in happenings if each.outcome == "impossible"}


def table_of_faults(happenings: Sequence[Happening], counts: Counter[str]) -> Iterator[str]:
    """Return how often each fault was injected."""
    outcomes: dict[str, Counter[str]] = {}
    impossible = impossible_kinds(happenings)
    for happening in happenings:
        outcomes.setdefault(happening.fault.name, Counter())[happening.outcome] += 1
    yield f"{'fault':<19}{'injected':>9}{'missed':>8}{'skipped':>9}  what it is"
    for name, kind in KINDS.items():
        if name in outcomes:
            each = outcomes[name]
            skipped = each["skipped"] + each["impossible"]
            yield f"{name:<19}{counts[name]:>9}{each['missed']:>8}{skipped:>9}  {kind.summary}"
    for name, reason in impossible.items():
        yield f"{name} was skipped, this machine cannot do it: {reason}"
    for happening in happenings:
        if happening.outcome == "broken":
            yield f"the harness itself failed: {happening}"


def table_of_events(evidence: Evidence) -> Iterator[str]:
    """Return what the events were, so that a reader sees how much was at stake."""
    for service, rows in evidence.rows.items():
        statuses = Counter(row.status for row in rows)
        told = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
        yield f"{service}: {len(rows)} events: {told}"
    kinds: dict[str, Counter[str]] = {}
    for row in evidence.rows["probe"]:
        kinds.setdefault(re.split(r"[.-]", row.key)[0], Counter())[row.status] += 1
    yield "probe by writer: " + "; ".join(
        f"{kind}: " + ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
        for kind, statuses in sorted(kinds.items())
    )
    journal, ledger = evidence.journal, evidence.ledger
    yield (
        f"writers: {len(journal.committed)} committed, {len(journal.rolled_back)} rolled back, "
        f"{len(journal.unknown)} whose COMMIT was not answered"
    )
    failed = sum(row.retry_count for row in evidence.rows["probe"])
    yield (
        f"attempts that failed: {failed}; rejected records: {len(evidence.rejected)}; records sent again by "
        f"strangers: {ledger.echoes}; rows replayed by people: {ledger.replayed}; "
        f"rows that lost their record: {len(ledger.lost_records)}"
    )


def table_of_promises(verdict: Verdict) -> Iterator[str]:
    """Return how each promise came out."""
    broken = Counter(breach.promise for breach in verdict.breaches)
    yield f"{'':<3}{'promise':<62}{'checked':>9}{'breaches':>10}"
    for number, promise in PROMISES.items():
        yield f"{number:<3}{promise:<62}{verdict.checked[number]:>9}{broken[number]:>10}"


def breaches(verdict: Verdict, evidence: Evidence) -> Iterator[str]:
    """Return each breach with the histories of its first events."""
    told: Counter[int] = Counter()
    for breach in verdict.breaches:
        told[breach.promise] += 1
        if told[breach.promise] > _BREACHES:
            continue
        yield ""
        yield f"BREACH of promise {breach.promise}: {breach.text}"
        for event_id in breach.event_ids[:_HISTORIES]:
            yield from evidence.history(event_id)
