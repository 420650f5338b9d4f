"""A consumer stands still while a handler keeps the interpreter's lock: what waits for it is excused, nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from tests.acceptance.workers import Worker
from tests.chaos.clocks import Clock
from tests.chaos.cluster import Cluster
from tests.chaos.crew import HUNG_EXIT_CODE, Fate, Member
from tests.chaos.evidence import Evidence, Work
from tests.chaos.ledger import Hold, Ledger
from tests.chaos.other_keys import delays
from tests.chaos.takeovers import take_overs
from tests.chaos.watch import Watch

CAME_AT, KILLED_AT, ENDED_AT, DONE_AT = 900.0, 1000.0, 1015.5, 1016.0
VICTIM_PID, OTHER_PID = 7, 8


def member(pid: int, fate: Fate, *, left_at: float, exit_code: int | None) -> Member:
    worker = cast("Worker", SimpleNamespace(pid=pid, log=Path("x.log")))
    return Member(
        worker, "consumer", "probe", Clock(Path("x")), fate, came_at=CAME_AT, left_at=left_at, exit_code=exit_code
    )


def other(exit_code: int | None) -> Member:
    return member(OTHER_PID, "ended by itself", left_at=ENDED_AT, exit_code=exit_code)


def run(*members: Member) -> tuple[Cluster, Evidence]:
    """Return a run in which an event of a sound key, published at ``KILLED_AT``, came to its end at ``DONE_AT``."""
    works = [
        Work(1, "event-1", "wide.1-0-0", 0, CAME_AT, CAME_AT, KILLED_AT - 1, VICTIM_PID),
        Work(2, "event-2", "wide.1-0-0", 0, KILLED_AT, KILLED_AT, DONE_AT, None),
    ]
    ledger = Ledger(holds=[Hold(KILLED_AT - 1, DONE_AT + 1, "row-holder")])
    cluster = SimpleNamespace(crew=SimpleNamespace(members=members), ledger=ledger, watch=Watch(), began_at=0.0)
    evidence = SimpleNamespace(
        works={"probe": works, "agent": []},
        rows={"probe": []},
        told={},
        ledger=ledger,
        installation=SimpleNamespace(trace_path=Path("no such file")),
    )
    return cast("Cluster", cluster), cast("Evidence", evidence)


@pytest.mark.parametrize("exit_code", [None, HUNG_EXIT_CODE, -9])
def test_worker_that_ended_in_another_way_kept_no_lock(exit_code: int | None) -> None:
    assert other(exit_code).kept_lock is None


@pytest.mark.parametrize(("exit_code", "is_too_long"), [(-9, True), (-BACKSTOP_SIGNAL, False)])
def test_share_waits_for_a_consumer_whose_handler_keeps_the_lock(exit_code: int, *, is_too_long: bool) -> None:
    victim = member(VICTIM_PID, "killed", left_at=KILLED_AT, exit_code=None)
    (found,) = take_overs(*run(victim, other(exit_code)), happenings=[])
    assert found.still is not None
    assert found.still.is_too_long == is_too_long


@pytest.mark.parametrize(("exit_code", "too_long"), [(-9, 1), (-BACKSTOP_SIGNAL, 0)])
def test_other_keys_wait_for_a_consumer_whose_handler_keeps_the_lock(exit_code: int, too_long: int) -> None:
    found = delays(*run(other(exit_code)), happenings=[])
    assert len(found.too_long) == too_long
    assert found.excused == 1 - too_long
