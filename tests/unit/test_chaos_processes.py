"""Which ends of workers, and which lines of their logs, a chaos run takes for a breach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from tests.acceptance.probe.names import HOOK_ERROR
from tests.acceptance.workers import Worker
from tests.chaos.clocks import Clock
from tests.chaos.crew import HUNG_EXIT_CODE, Crew, Member, Role
from tests.chaos.processes import judge_processes, surprises
from tests.chaos.verdict import Verdict
from tests.chaos.writers import Writers

PID = 4711


def judged(
    *, role: Role = "consumer", exit_code: int | None, killed_itself: tuple[int, ...] = (), text: str = ""
) -> Any:
    worker = cast("Worker", SimpleNamespace(pid=PID, text=text, log=Path("x.log")))
    member = Member(worker, role, "probe", Clock(Path("x")), fate="ended by itself", exit_code=exit_code)
    crew = cast("Crew", SimpleNamespace(members=[member]))
    verdict = Verdict()
    judge_processes(verdict, crew, cast("Writers", SimpleNamespace(trouble=[])), killed_itself=killed_itself)
    return verdict.breaches


@pytest.mark.parametrize("exit_code", [-9, -11, 7, -BACKSTOP_SIGNAL])
def test_worker_may_end_where_a_handler_has_ended_it(exit_code: int) -> None:
    assert not judged(exit_code=exit_code, killed_itself=(PID,))
    assert judged(exit_code=exit_code, killed_itself=(PID + 1,))


def test_worker_may_end_itself_because_a_handler_never_returned() -> None:
    assert not judged(exit_code=HUNG_EXIT_CODE)
    assert judged(exit_code=HUNG_EXIT_CODE, role="relay")


@pytest.mark.parametrize("exit_code", [0, 1, None])
def test_worker_that_ends_in_any_other_way_is_a_breach(exit_code: int | None) -> None:
    assert judged(exit_code=exit_code, killed_itself=(PID,) if exit_code is None else ())


@pytest.fixture(params=["", "  "], ids=["of Python", "of a log"])
def traceback(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """Return what makes a traceback: Python's own, and one in a log, which stands behind two blanks."""
    indent: str = request.param
    lines = ("Traceback (most recent call last):", '  File "x.py", line 1, in x')
    return lambda said, error: "".join(f"{line}\n" for line in (said, *(indent + each for each in (*lines, error))))


def test_traceback_that_nothing_injected_explains_is_a_surprise(traceback: Callable[[str, str], str]) -> None:
    said = "2026-11-30 09:00:00,000 ERROR outbox it failed"
    after = "2026-11-30 09:00:01,000 INFO outbox it goes on\n"
    assert surprises(traceback(said, "KeyError: 'x'") + after) == [said]
    assert surprises(traceback(said, f"RuntimeError: {HOOK_ERROR}") + after) == []
    assert surprises(traceback(said, "KeyError: 'x'") + after + f"RuntimeError: {HOOK_ERROR}\n") == [said]
    assert surprises(traceback("2026-11-30 09:00:00,000 ERROR kafka.conn", "OSError") + after) == []
    assert surprises(after) == []
