"""Checks of promises 1 to 3, row by row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.acceptance.plans import Journal


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as a test sees it."""

    id: int
    event_id: str
    event_type: str
    key: str
    status: str
    retry_count: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What a handler of the probe service wrote; in the order in which they were written."""

    outbox_id: int
    event_id: str
    key: str
    n: int
    attempt: int
    worker_pid: int


def unexpected_tracebacks(text: str) -> list[str]:
    """Return the log lines that a traceback follows, but for those that kafka-python writes when it closes."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith("Traceback")]
    said = [lines[number - 1] if number else "" for number in starts]
    return [line for line in said if " ERROR kafka." not in line]


INTERRUPTED = "ConnectionLostError: "
"""What an interruption leaves in a row begins so. It is no attempt: one connection was cut, and others lived on."""


def check_delivery(
    rows: Sequence[Row], journal: Journal, *, dead: Collection[str], retried: Collection[str] = ()
) -> None:
    """Check promise 1: what was committed is consumed or dead with a reason, and there is nothing else."""
    twice = [event_id for event_id, count in Counter(row.event_id for row in rows).items() if count > 1]
    assert not twice, f"events with two rows: {twice}"
    by_event = {row.event_id: row for row in rows}
    lost = journal.committed - by_event.keys()
    assert not lost, f"{len(lost)} committed events have no row: {sorted(lost)[:5]}"
    ghosts = journal.rolled_back & by_event.keys()
    assert not ghosts, f"{len(ghosts)} events of rolled-back transactions have a row: {sorted(ghosts)[:5]}"
    strangers = by_event.keys() - journal.committed - journal.unknown
    assert not strangers, f"{len(strangers)} rows that nobody published: {sorted(strangers)[:5]}"
    expected = {row.event_id: "dead" if row.event_id in dead else "consumed" for row in rows}
    wrong = [row for row in rows if row.status != expected[row.event_id]]
    assert not wrong, f"{len(wrong)} rows in the wrong status: {wrong[:5]}"
    silent = [row for row in rows if row.status == "dead" and not row.last_error]
    assert not silent, f"dead without a reason: {silent}"
    unharmed = [row for row in rows if row.event_id not in {*retried, *dead}]
    harmed = [row for row in unharmed if row.retry_count or not (row.last_error or INTERRUPTED).startswith(INTERRUPTED)]
    assert not harmed, f"{len(harmed)} healthy events lost attempts: {harmed[:5]}"


def check_business(rows: Sequence[Row], business: Collection[str]) -> None:
    """Check that the rows published by the test processes and the business rows beside them are the same events."""
    events = {row.event_id for row in rows}
    missing = set(business) - events
    assert not missing, f"business rows without their event: {sorted(missing)[:5]}"


def check_effects(rows: Sequence[Row], effects: Sequence[EffectRow], *, in_order: Collection[str] | None) -> None:
    """Check promises 2 and 3: one effect an event, in the order of ids for each key, and no other effect."""
    counts = Counter(effect.outbox_id for effect in effects)
    consumed = {row.id: row for row in rows if row.status == "consumed"}
    missing = sorted(consumed.keys() - counts.keys())
    assert not missing, f"{len(missing)} consumed events without an effect: {missing[:5]}"
    extra = sorted(counts.keys() - consumed.keys())
    assert not extra, f"{len(extra)} effects of events that are not consumed: {extra[:5]}"
    twice = {row_id: count for row_id, count in counts.items() if count > 1}
    assert not twice, f"events with several effects: {twice}"
    foreign = [
        effect
        for effect in effects
        if (effect.event_id, effect.key) != (consumed[effect.outbox_id].event_id, consumed[effect.outbox_id].key)
    ]
    assert not foreign, f"effects that speak of other events: {foreign[:5]}"
    by_key: dict[str, list[int]] = defaultdict(list)
    for effect in effects:
        by_key[effect.key].append(effect.outbox_id)
    disorder = {key: ids for key, ids in by_key.items() if (in_order is None or key in in_order) and ids != sorted(ids)}
    assert not disorder, f"keys whose events took effect out of order: {dict(list(disorder.items())[:3])}"
