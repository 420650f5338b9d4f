"""Holds what a run left behind against the promises, one after the other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.acceptance.promises import Row, check_business, check_delivery, check_effects
from tests.chaos.evidence import Evidence
from tests.chaos.expectations import Expected, expectation

PROMISES: Final = {
    1: "committed means delivered; rolled back means nothing",
    2: "one effect for each event",
    3: "order per key",
    4: "an outage costs no attempt, and no process ends by itself",
    5: "one bad event stops nobody else, and dies for its own reason",
    6: "nothing is dropped in silence",
    7: "a service keeps to itself",
    8: "what is stuck comes back",
    9: "any number of each; a killed one's share moves within 10 s",
    10: "while Kafka is unavailable, pages and outbox_status answer in time",
}

_EVENT_TYPES: Final = {"probe": r"probe\..*", "agent": r"agent\.state\.snapshot\.persist"}


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that was not kept."""

    promise: int
    text: str
    event_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What was checked, and what was found."""

    checked: Counter[int] = field(default_factory=Counter)
    """How many things were looked at, by promise."""
    breaches: list[Breach] = field(default_factory=list)

    def note(self, promise: int, text: str, event_ids: Iterable[str] = ()) -> None:
        self.breaches.append(Breach(promise, text, tuple(event_ids)))

    def hold(self, promise: int, evidence: Evidence, check: Callable[[], None]) -> None:
        """Run a check of the acceptance harness; what it finds is a breach."""
        try:
            check()
        except AssertionError as error:
            text = str(error)
            self.note(4 if "lost attempts" in text else promise, text, _events_in(text, evidence))


def judge(evidence: Evidence, *, is_quiet: bool) -> Verdict:
    """Check all promises that rows, effects and records can tell of."""
    verdict = Verdict()
    if not is_quiet:
        verdict.note(1, "events or records were still on their way when patience ended")
    expected = expectations(evidence)
    _check_delivery(verdict, evidence, expected)
    _check_attempts(verdict, evidence, expected)
    _check_effects(verdict, evidence)
    _check_snapshots(verdict, evidence)
    _check_rejected(verdict, evidence)
    _check_tables(verdict, evidence)
    _check_lost_records(verdict, evidence)
    return verdict


def judge_lags(verdict: Verdict, lags: Mapping[str, int | None]) -> None:
    """Check that nothing lies before the group of a service when nothing is on its way."""
    for service, lag in lags.items():
        verdict.checked[8] += 1
        if lag != 0:
            verdict.note(8, f"LAG of {service} is {'?' if lag is None else lag} though nothing is on its way")


def judge_transactions(verdict: Verdict, ages_s: Iterable[int]) -> None:
    """Check that no worker does its work in a transaction that is never committed."""
    verdict.checked[1] += 1
    for age_s in ages_s:
        verdict.note(1, f"a transaction has been open for {age_s} s though nothing is to be done: it commits nothing")


def expectations(evidence: Evidence) -> dict[int, Expected]:
    """Say what must have become of each event of the probe service, by the id of its row."""
    written = evidence.ledger.sql_rows
    return {
        row.id: expectation(
            row, evidence.told[row.id], written=written.get(row.key), max_retry=evidence.max_retry[row.id]
        )
        for row in evidence.rows["probe"]
    }


def _check_delivery(verdict: Verdict, evidence: Evidence, expected: dict[int, Expected]) -> None:
    probe = evidence.rows["probe"]
    dead = {
        row.event_id
        for row in probe
        if expected[row.id].must_die or (expected[row.id].may_die and row.status == "dead")
    }
    retried = {row.event_id for row in probe if not expected[row.id].is_sound} | _mended(evidence)
    verdict.checked[1] += len(evidence.all_rows) + len(evidence.journal.rolled_back)
    verdict.hold(1, evidence, lambda: check_delivery(evidence.all_rows, evidence.journal, dead=dead, retried=retried))
    verdict.hold(1, evidence, lambda: check_business(evidence.all_rows, evidence.business))
    by_sql = evidence.ledger.sql_rows.keys()
    written = [row for row in evidence.all_rows if row.key not in by_sql]
    alone = [row.event_id for row in written if row.event_id not in evidence.business]
    if alone:
        verdict.note(1, f"{len(alone)} rows without the business row of their transaction", alone[:5])
    for row in probe:
        if expected[row.id].may_die:
            verdict.checked[5] += 1
            if row.status == "dead" and not (row.last_error or "").startswith(expected[row.id].reason):
                verdict.note(5, f"dead for another reason than {expected[row.id].reason!r}: {row}", [row.event_id])


def _mended(evidence: Evidence) -> set[str]:
    """Return the events that died, were mended by a person, and keep the reason of their death."""
    return {row.event_id for row in evidence.rows["probe"] if row.event_type == "probe.parking"}


def _check_attempts(verdict: Verdict, evidence: Evidence, expected: dict[int, Expected]) -> None:
    """Nothing that was injected but a handler's own error costs an attempt, and each of those costs exactly one."""
    attempt_of = {effect.outbox_id: effect.attempt for effect in evidence.kept_effects}
    for row in evidence.rows["probe"]:
        verdict.checked[4] += 1
        wanted = expected[row.id]
        if row.status in wanted.statuses and not wanted.least <= row.retry_count <= wanted.most:
            made = str(wanted.least) if wanted.least == wanted.most else f"{wanted.least} to {wanted.most}"
            verdict.note(4, f"{row.retry_count} attempts failed where {made} were made to: {row}", [row.event_id])
        if row.status == "consumed" and attempt_of.get(row.id, row.retry_count + 1) != row.retry_count + 1:
            verdict.note(4, f"took effect at attempt {attempt_of[row.id]}: {row}", [row.event_id])
    for row in evidence.rows["agent"]:
        verdict.checked[4] += 1
        if row.retry_count:
            verdict.note(4, f"a sound event lost attempts: {row}", [row.event_id])


def _check_effects(verdict: Verdict, evidence: Evidence) -> None:
    probe, effects = evidence.rows["probe"], evidence.kept_effects
    verdict.checked[2] += len(effects)
    verdict.hold(2, evidence, lambda: check_effects(probe, effects, in_order=()))
    for key, late in _late_by_key(evidence).items():
        verdict.checked[3] += 1
        # A writer that got no answer to its COMMIT went on while the server may still have been about to commit: ids
        # that are committed out of order cannot be put in order by anybody.
        if guilty := [event_id for event_id in late if event_id not in evidence.journal.unknown]:
            verdict.note(3, f"events of {key} took effect after later ones: {guilty}", guilty)
    wrong = [effect for effect in effects if (told := evidence.told.get(effect.outbox_id)) and told.n != effect.n]
    if wrong:
        verdict.note(2, f"effects of another payload: {wrong[:5]}", [effect.event_id for effect in wrong[:5]])


def _late_by_key(evidence: Evidence) -> dict[str, list[str]]:
    """Return, for every key, the events that took effect after one with a higher id."""
    late: dict[str, list[str]] = defaultdict(list)
    highest: dict[str, int] = defaultdict(int)
    for effect in evidence.kept_effects:
        if effect.outbox_id < highest[effect.key]:
            late[effect.key].append(effect.event_id)
        highest[effect.key] = max(highest[effect.key], effect.outbox_id)
    return {key: late[key] for key in highest}


def _check_snapshots(verdict: Verdict, evidence: Evidence) -> None:
    """The agent service keeps the newest snapshot of each conversation."""
    newest: dict[str, Row] = {row.key: row for row in evidence.rows["agent"] if row.status == "consumed"}
    kept = dict(evidence.snapshots)
    for key, row in newest.items():
        verdict.checked[3] += 1
        if kept.get(key) != row.id:
            verdict.note(3, f"conversation {key} keeps row {kept.get(key)}, its newest is {row.id}", [row.event_id])


def _check_rejected(verdict: Verdict, evidence: Evidence) -> None:
    """The rejected records are exactly the garbage, each once."""
    found = Counter(record.key for record in evidence.rejected)
    sent = evidence.ledger.garbage
    for garbage in sent.values():
        verdict.checked[6] += 1
        if garbage.is_acknowledged and not found[garbage.key]:
            verdict.note(6, f"{garbage} was dropped in silence")
        if garbage.is_hidden and found[garbage.key]:
            verdict.note(6, f"{garbage} was rejected though only committed transactions are to be read")
    places = Counter((record.topic, record.partition, record.offset) for record in evidence.rejected)
    for place, count in places.items():
        if count > 1:
            verdict.note(6, f"the record at {place} was kept {count} times")
    for record in evidence.rejected:
        known = sent.get(record.key) if record.key is not None else None
        if known is None:
            verdict.note(6, f"a record that is no garbage was rejected: {record}")
        elif not record.reason.startswith(known.reason):
            verdict.note(6, f"rejected for another reason than {known.reason!r}: {record}")


def _check_tables(verdict: Verdict, evidence: Evidence) -> None:
    for service, rows in evidence.rows.items():
        verdict.checked[7] += len(rows)
        strange = [row for row in rows if not re.fullmatch(_EVENT_TYPES[service], row.event_type)]
        if strange:
            verdict.note(7, f"the table of {service} has rows of others: {strange[:5]}")


def _check_lost_records(verdict: Verdict, evidence: Evidence) -> None:
    lost = [row for row in evidence.rows["probe"] if row.id in evidence.ledger.lost_records]
    verdict.checked[8] += len(lost)
    stuck = [row for row in lost if row.status in {"pending", "published"}]
    if stuck:
        verdict.note(8, f"{len(stuck)} rows are stuck: {stuck[:5]}", [row.event_id for row in stuck[:5]])


def _events_in(text: str, evidence: Evidence) -> list[str]:
    """Return the events that a check speaks of, by event id or by the id of their row."""
    words = list(dict.fromkeys(re.findall(r"[\w-]+", text.partition(":")[2])))
    named = [word for word in words if word in evidence.event_ids and not word.isdigit()]
    by_id = {str(row.id): row.event_id for row in evidence.rows["probe"]}
    return named or [by_id[word] for word in words if word in by_id]
