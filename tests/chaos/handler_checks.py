"""Checks of what handlers that do wrong leave behind: interruptions, hung calls, kept locks of the
interpreter, hooks of a commit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from tests.chaos.crew import Member
from tests.chaos.evidence import Evidence
from tests.chaos.verdict import Verdict, expectations

_NEAR_ITS_END_S: Final = 10.0
"""A process that was killed or stood still so soon after a commit may not have come to its hooks."""


def judge_handlers(verdict: Verdict, evidence: Evidence, members: Sequence[Member]) -> None:
    """Check all of them."""
    _check_interruptions(verdict, evidence)
    _check_hung(verdict, evidence)
    _check_kept_locks(verdict, evidence, members)
    _check_hooks(verdict, evidence, members)


def _check_interruptions(verdict: Verdict, evidence: Evidence) -> None:
    """They are counted apart, and an orderly end forgets them."""
    wanted = expectations(evidence)
    rows = {(service, row.id): row for service, found in evidence.rows.items() for row in found}
    for (service, row_id), count in evidence.interruptions.items():
        verdict.checked[4] += 1
        row = rows[service, row_id]
        most = wanted[row_id].interruptions if service == "probe" and row.status == "dead" else 0
        least = most if most and not wanted[row_id].most else 0
        if not least <= count <= most:
            verdict.note(4, f"{count} interruptions are left where {least} to {most} may be: {row}", [row.event_id])


def _check_hung(verdict: Verdict, evidence: Evidence) -> None:
    """No handler went on for long beyond its time limit."""
    by_id = {row.id: row for row in evidence.rows["probe"]}
    for row_id, told in evidence.told.items():
        verdict.checked[5] += told is not None and told.fault.startswith("hang")
        overran = [mark.pid for mark in evidence.marks if mark.what == "overran" and mark.outbox_id == row_id]
        if overran:
            row = by_id[row_id]
            verdict.note(5, f"nobody ended a handler that hung, in the processes {overran}: {row}", [row.event_id])


def _check_kept_locks(verdict: Verdict, evidence: Evidence, members: Sequence[Member]) -> None:
    """The kernel ended each process whose handler kept the interpreter's lock, unless a fault of the run was first."""
    by_id = {row.id: row for row in evidence.rows["probe"]}
    wanted = {row_id for row_id, told in evidence.told.items() if told is not None and told.fault == "kill-match"}
    kept = {mark.pid: mark.outbox_id for mark in evidence.marks if mark.what == "kill" and mark.outbox_id in wanted}
    # A long run gives ids of processes again: one of those that had an id is the one that kept the lock.
    ended = {member.worker.pid for member in members if member.exit_code == -BACKSTOP_SIGNAL or member.fate == "killed"}
    for member in members:
        row_id = kept.get(member.worker.pid)
        if row_id is None:
            continue
        verdict.checked[5] += 1
        if member.worker.pid in ended:
            continue
        row = by_id[row_id]
        verdict.note(
            5,
            f"a handler kept the interpreter's lock, and the {member} was not ended by {BACKSTOP_SIGNAL.name}: it "
            f"{member.fate}, exit code {member.exit_code}: {row}",
            [row.event_id],
        )


def _check_hooks(verdict: Verdict, evidence: Evidence, members: Sequence[Member]) -> None:
    """A hook that raises takes no other along, unless the process went between the commit and its hooks."""
    came = {mark.outbox_id for mark in evidence.marks if mark.what == "hook"}
    by_id = {row.id: row for row in evidence.rows["probe"]}
    for work in evidence.works["probe"]:
        told = evidence.told[work.id]
        if told is None or told.fault != "hook" or by_id[work.id].status != "consumed":
            continue
        verdict.checked[5] += 1
        if work.id not in came and not _went(work.pid, work.consumed_at, members):
            verdict.note(5, f"a hook was dropped because another raised: {by_id[work.id]}", [work.event_id])


def _went(pid: int | None, at: float, members: Sequence[Member]) -> bool:
    member = next((each for each in members if each.worker.pid == pid), None)
    if member is None:
        return False
    left_at = math.inf if member.left_at is None else member.left_at
    return left_at - at < _NEAR_ITS_END_S or any(began_at - at < _NEAR_ITS_END_S for began_at, _ in member.froze)
