"""A chaos run's verdict notices each breach: of a run in which all is well, one thing is changed at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from outbox.exceptions import ConnectionLostError
from tests.acceptance.plans import Journal
from tests.acceptance.probe.trace import Mark
from tests.acceptance.promises import EffectRow, Row
from tests.acceptance.workers import Worker
from tests.chaos.clocks import Clock
from tests.chaos.crew import HUNG_EXIT_CODE, Fate, Member
from tests.chaos.evidence import Evidence, Rejected, Work
from tests.chaos.expectations import MAX_INTERRUPTIONS, told
from tests.chaos.handler_checks import judge_handlers
from tests.chaos.handlers import FOR_EVER
from tests.chaos.ledger import Garbage, Ledger
from tests.chaos.verdict import Verdict, judge, judge_lags, judge_transactions

PID = 4711
SOUND, SWALLOWS, KILLS, HOOKED, COMMITS, BEHIND = range(1, 7)
KEYS = {SOUND: "wide.1-0-0", SWALLOWS: "swallow", KILLS: "kill", HOOKED: "hook", COMMITS: "commit", BEHIND: "commit"}
FIELDS: dict[int, dict[str, Any]] = {
    SWALLOWS: {"fault": "swallow-error", "times": 2},
    KILLS: {"fault": "kill-exit", "times": FOR_EVER},
    HOOKED: {"fault": "hook"},
    COMMITS: {"fault": "raw-commit", "times": 1},
}
ATTEMPTS = {SWALLOWS: 2, COMMITS: 1}


def evidence() -> Evidence:
    """Return what a run left behind in which every promise was kept."""
    found = cast("Any", Evidence.__new__(Evidence))
    found.ledger = Ledger(garbage={b"g": Garbage(b"g", "the record", is_acknowledged=True)})
    found.rows = {
        "probe": [
            Row(row_id, f"event-{row_id}", "probe.step", key, "consumed", ATTEMPTS.get(row_id, 0), None)
            for row_id, key in KEYS.items()
        ],
        "agent": [],
    }
    replace_row(found, KILLS, status="dead", last_error="it ended its process 5 times in a row")
    # A killer of long transactions met it: that is no attempt.
    replace_row(found, SOUND, last_error=f"ConnectionLostError: {ConnectionLostError(OSError(2013, 'gone'))}")
    found.effects = [
        EffectRow(row_id, f"event-{row_id}", key, row_id, ATTEMPTS.get(row_id, 0) + 1, PID)
        for row_id, key in KEYS.items()
        if row_id != KILLS
    ]
    found.business = {row.event_id for row in found.rows["probe"]}
    payloads = {row_id: {"key": key, "n": row_id, **FIELDS.get(row_id, {})} for row_id, key in KEYS.items()}
    found.told = {row_id: told(json.dumps({"payload": payload})) for row_id, payload in payloads.items()}
    found.interruptions = {("probe", row_id): MAX_INTERRUPTIONS if row_id == KILLS else 0 for row_id in KEYS}
    found.marks = [*(Mark("begin", row_id, 1, PID) for row_id in KEYS), Mark("hook", HOOKED, 1, PID)]
    found.max_retry = dict.fromkeys(KEYS, 5)
    found.rejected = [Rejected(b"g", 0, 7, "the record's value is not an outbox message")]
    found.snapshots = []
    found.journal = Journal(committed={row.event_id for row in found.rows["probe"]})
    works = [Work(row_id, f"event-{row_id}", key, 0, 100.0, 100.1, 100.2, PID) for row_id, key in KEYS.items()]
    found.works = {"probe": works, "agent": []}
    return cast("Evidence", found)


def replace_row(found: Any, row_id: int, **changes: Any) -> None:
    rows = found.rows["probe"]
    rows[row_id - 1] = dataclasses.replace(rows[row_id - 1], **changes)


def replace_effect(found: Any, row_id: int, **changes: Any) -> None:
    found.effects = [
        dataclasses.replace(effect, **changes) if effect.outbox_id == row_id else effect for effect in found.effects
    ]


def member(*, left_at: float | None = None) -> Member:
    worker = cast("Worker", SimpleNamespace(pid=PID, log=Path("x.log")))
    return Member(worker, "consumer", "probe", Clock(Path("x")), left_at=left_at)


def judged(found: Evidence, *members: Member) -> Verdict:
    verdict = judge(found, is_quiet=True)
    judge_handlers(verdict, found, members or (member(),))
    return verdict


def twice(found: Any, row_id: int) -> None:
    found.effects.append(next(effect for effect in found.effects if effect.outbox_id == row_id))


def test_run_in_which_all_is_well_has_no_breach() -> None:
    assert judged(evidence()).breaches == []


ABORTED = Garbage(b"g", "the record", is_acknowledged=False, is_hidden=True)


def _lose_effect(found: Any) -> None:
    found.effects = [effect for effect in found.effects if effect.outbox_id != SOUND]


def _forget_hook(found: Any) -> None:
    found.marks = [mark for mark in found.marks if mark.what != "hook"]


SABOTAGE: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "consumed without an effect": (2, _lose_effect),
    "two effects": (2, lambda found: twice(found, SOUND)),
    "out of order": (3, lambda found: found.effects.reverse()),
    "still pending": (1, lambda found: replace_row(found, SOUND, status="published")),
    "a sound event paid": (4, lambda found: replace_row(found, SOUND, retry_count=1)),
    "a swallowed error was taken for success": (4, lambda found: replace_row(found, SWALLOWS, retry_count=0)),
    "a swallowed error cost too much": (4, lambda found: replace_row(found, SWALLOWS, retry_count=3)),
    "took effect at an attempt that failed": (4, lambda found: replace_effect(found, SWALLOWS, attempt=2)),
    "what kills was charged": (4, lambda found: replace_row(found, KILLS, retry_count=1)),
    "what kills was consumed": (1, lambda found: replace_row(found, KILLS, status="consumed")),
    "what kills died without a reason": (1, lambda found: replace_row(found, KILLS, last_error=None)),
    "what kills died too early": (4, lambda found: found.interruptions.update({("probe", KILLS): 4})),
    "interruptions were not forgotten": (4, lambda found: found.interruptions.update({("probe", SOUND): 1})),
    "a handler hung for long": (5, lambda found: found.marks.append(Mark("overran", SOUND, 1, PID))),
    "a hook was dropped": (5, _forget_hook),
    "what was aborted was rejected": (6, lambda found: found.ledger.garbage.update({b"g": ABORTED})),
    "a record was dropped": (6, lambda found: found.rejected.clear()),
    "a record was kept twice": (6, lambda found: found.rejected.extend(found.rejected)),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_breach_is_noticed(name: str) -> None:
    promise, spoil = SABOTAGE[name]
    found = evidence()
    spoil(found)
    assert promise in {breach.promise for breach in judged(found).breaches}


def test_effect_that_a_handlers_own_commit_parted_from_its_mark_may_be_there_twice() -> None:
    found = cast("Any", evidence())
    found.marks.append(Mark("commit", COMMITS, 1, PID))
    found.effects.insert(0, next(effect for effect in found.effects if effect.outbox_id == BEHIND))
    assert judged(found).breaches == []


def test_commit_excuses_no_effect_that_is_missing() -> None:
    found = cast("Any", evidence())
    found.marks.append(Mark("commit", COMMITS, 1, PID))
    _lose_effect(found)
    assert {breach.promise for breach in judged(found).breaches} == {2}


def test_commit_excuses_no_other_process() -> None:
    found = cast("Any", evidence())
    found.marks.append(Mark("commit", COMMITS, 1, PID + 1))
    found.effects.insert(0, next(effect for effect in found.effects if effect.outbox_id == BEHIND))
    assert judged(found).breaches


def test_records_at_one_place_of_two_topics_are_two() -> None:
    found = cast("Any", evidence())
    found.rejected.append(dataclasses.replace(found.rejected[0], topic="another"))
    assert judged(found).breaches == []


@pytest.mark.parametrize(("lag", "breaches"), [(0, []), (1, [8]), (None, [8])])
def test_lag_must_be_none_when_nothing_is_on_its_way(lag: int | None, breaches: list[int]) -> None:
    verdict = Verdict()
    judge_lags(verdict, {"probe": lag, "agent": 0})
    assert verdict.checked[8] == 2
    assert [breach.promise for breach in verdict.breaches] == breaches


@pytest.mark.parametrize(("ages_s", "breaches"), [([], []), ([14, 800], [1, 1])])
def test_no_transaction_may_be_open_when_nothing_is_to_be_done(ages_s: list[int], breaches: list[int]) -> None:
    verdict = Verdict()
    judge_transactions(verdict, ages_s)
    assert [breach.promise for breach in verdict.breaches] == breaches


def test_hook_may_be_lost_with_its_process() -> None:
    found = evidence()
    _forget_hook(found)
    assert judged(found, member(left_at=101.0)).breaches == []
    assert judged(found, member(left_at=150.0)).breaches


def _keep_lock(found: Any) -> None:
    """Have a handler of the process keep the interpreter's lock, once."""
    found.told[SOUND] = told(json.dumps({"payload": {"n": SOUND, "fault": "kill-match", "times": 1}}))
    found.marks.append(Mark("kill", SOUND, 1, PID))


def ended(fate: Fate, exit_code: int | None) -> Member:
    found = member(left_at=150.0)
    found.fate, found.exit_code = fate, exit_code
    return found


@pytest.mark.parametrize(
    "end",
    [ended("ended by itself", -BACKSTOP_SIGNAL), ended("did not stop well", -BACKSTOP_SIGNAL), ended("killed", None)],
    ids=lambda end: f"{end.fate}, {end.exit_code}",
)
def test_process_whose_handler_keeps_the_interpreters_lock_may_end_by_the_backstop_or_a_fault(end: Member) -> None:
    found = evidence()
    _keep_lock(found)
    assert judged(found, end).breaches == []


@pytest.mark.parametrize(
    "end",
    [
        ended("ended by itself", -9),
        ended("ended by itself", HUNG_EXIT_CODE),
        ended("did not stop well", None),
        ended("stopped", None),
    ],
    ids=lambda end: f"{end.fate}, {end.exit_code}",
)
def test_process_whose_handler_keeps_the_interpreters_lock_must_not_end_in_another_way(end: Member) -> None:
    found = evidence()
    assert judged(found, end).breaches == []
    _keep_lock(found)
    assert [(breach.promise, breach.event_ids) for breach in judged(found, end).breaches] == [(5, (f"event-{SOUND}",))]
