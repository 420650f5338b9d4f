"""How the processes of a run ended, and what their logs say."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from tests.acceptance.probe.names import HOOK_ERROR
from tests.chaos.crew import HUNG_EXIT_CODE, Crew, Member
from tests.chaos.verdict import Verdict
from tests.chaos.writers import Writers

_NO_SUCH_TABLE: Final = "(1146,"
_EXPECTED: Final = (HOOK_ERROR, _NO_SUCH_TABLE)
"""Errors that a worker may log with a traceback: a hook's own, and that a table is missing."""

_KAFKAS_OWN: Final = " ERROR kafka."
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\d ")


def judge_processes(verdict: Verdict, crew: Crew, writers: Writers, *, killed_itself: Collection[int]) -> None:
    """Check that workers ended when asked to, and by themselves only where a handler ended or hung them.

    ``killed_itself`` are the processes that a handler ended.
    """
    for member in crew.members:
        verdict.checked[4] += 1
        is_excused = is_end_excused(member, killed_itself)
        if member.fate == "ended by itself" and not is_excused:
            verdict.note(4, f"{member.told}:\n{member.worker.text[-6000:]}")
        if lines := surprises(member.worker.text):
            verdict.note(4, f"{member} wrote tracebacks after the lines: {lines}")
        if member.fate in {"stopped", "did not stop well"}:
            verdict.checked[9] += 1
        if member.fate == "did not stop well" and not is_excused:
            verdict.note(9, f"{member}: {member.told}:\n{member.worker.text[-6000:]}")
    for trouble in writers.trouble:
        verdict.note(1, f"a process that publishes ended: {trouble}")


def is_end_excused(member: Member, killed_itself: Collection[int]) -> bool:
    """Say whether a handler ended the process, or made it end itself by never returning."""
    if member.role != "consumer" or member.exit_code in {None, 0}:
        return False
    return member.exit_code == HUNG_EXIT_CODE or member.worker.pid in killed_itself


def surprises(text: str) -> list[str]:
    """Return the log lines that a traceback follows which nothing that was injected explains."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("Traceback") or not number or not lines[number - 1].strip():
            continue
        said, told = lines[number - 1], []
        for later in lines[number:]:
            if _LOG_LINE.match(later):
                break
            told.append(later)
        if _KAFKAS_OWN not in said and not any(known in each for known in _EXPECTED for each in told):
            found.append(said)
    return found
