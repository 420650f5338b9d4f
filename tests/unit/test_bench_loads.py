"""The backlogs of `make bench`: of some batches however large a payload is, and never of gigabytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.__main__ import parse, plan_of
from benchmarks.processes import Process
from benchmarks.speed.scale import load_of
from tests.waiting import wait_until

PLAN = plan_of(parse([]))


@pytest.mark.parametrize("size", [200, 1_000, 10_000, 100_000, 2_000_000])
def test_backlog_has_ten_batches_and_is_not_too_large(size: int) -> None:
    load = load_of(size, PLAN)
    assert load.payload == size
    assert load.events >= 10 * load.batch
    assert load.events * size <= 120_000_000
    assert 5 <= load.batch <= 500


def test_answer_of_a_process_is_its_last_one(tmp_path: Path) -> None:
    process = _start(tmp_path, "print('a log'); print('ANSWER {\"a\": 1}'); print('ANSWER {\"a\": 2}'); print('end')")
    process.wait(timeout_s=30)
    assert process.answer == {"a": 2}


def test_process_without_an_answer_is_an_error_with_its_words(tmp_path: Path) -> None:
    process = _start(tmp_path, "print('nothing to say')")
    process.wait(timeout_s=30)
    with pytest.raises(RuntimeError, match="nothing to say"):
        _ = process.answer


def test_processor_time_of_a_process_is_known_while_it_runs(tmp_path: Path) -> None:
    process = _start(tmp_path, "import signal; sum(range(10**7)); print('done', flush=True); signal.pause()")
    try:
        wait_until(lambda: "done" in process.text, timeout=30, message="the process has worked")
        assert 0 < process.cpu_s < 30
    finally:
        process.dispose()


def _start(folder: Path, code: str) -> Process:
    return Process("a process", ("-c", code), env=os.environ, log=folder / "log")
