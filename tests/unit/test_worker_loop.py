"""The loop of every worker: what it goes on after, what ends it, and how long it rests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError

from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.worker_loop import WorkerLoop
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError
from tests.threads import Threads
from tests.toys import RecordingStop
from tests.waiting import wait_until

POLL = timedelta(seconds=7)
UNAVAILABLE = (
    BrokerUnavailableError("unavailable"),
    LostSubscriptionError("fenced"),
    OperationalError("disk I/O error"),
    OperationalError("database is locked"),
)
FAULTS = (ProgrammingError("no such table"), AttributeError("a bug"))


class Script:
    """Steps that give or raise what a test says, and then ask the loop to stop."""

    def __init__(self, stop: StopFlag, *script: bool | Exception) -> None:
        self._stop, self._script = stop, list(script)
        self.calls: list[str] = []

    def step(self) -> bool:
        self.calls.append("step")
        if not self._script:
            self._stop.set()
            return True
        given = self._script.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


def worker(step: Callable[[], bool], **options: Any) -> WorkerLoop:
    given: dict[str, Any] = {
        "using": "default",
        "backoff": ConnectionBackoff("agent", "relay", rand=0.0),
        "pause": lambda worked: timedelta(0) if worked else POLL,
    }
    return WorkerLoop(step=step, **given | options)


@pytest.mark.parametrize("error", [*UNAVAILABLE, *FAULTS], ids=str)
def test_worker_that_serves_for_ever_backs_off_and_goes_on_after_any_error(
    stop: RecordingStop, error: Exception
) -> None:
    script = Script(stop, error, error, error)
    recovered: list[Exception] = []

    worker(script.step, recover=recovered.append).run(stop)

    assert recovered == [error] * 3
    assert len(script.calls) == 4
    assert len(stop.pauses) == 3
    assert stop.pauses[0] < stop.pauses[1] < stop.pauses[2]


@pytest.mark.parametrize("end", ["is_complete", "is_drained"])
@pytest.mark.parametrize("error", UNAVAILABLE, ids=str)
def test_outage_only_makes_a_worker_wait_that_has_an_end(stop: RecordingStop, end: str, error: Exception) -> None:
    script = Script(stop, error)
    worker(script.step, **{end: lambda: False}).run(stop)
    assert script.calls == ["step", "step"]


@pytest.mark.parametrize("end", ["is_complete", "is_drained"])
@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_fault_is_raised_where_an_end_is_set(stop: RecordingStop, end: str, error: Exception) -> None:
    recovered: list[Exception] = []
    with pytest.raises(type(error)):
        worker(Script(stop, error).step, **{end: lambda: False}, recover=recovered.append).run(stop)
    assert (stop.pauses, recovered) == ([], []), "it is left as it was, for a person to look at"


def test_it_rests_after_a_step_without_work_and_not_after_others(stop: RecordingStop) -> None:
    worker(Script(stop, True, False, True, False).step).run(stop)
    assert stop.pauses == [POLL, POLL]


def test_back_off_is_not_the_workers_own_rest(stop: RecordingStop) -> None:
    """A relay's is ended by wake-ups: those do not say that the database is back."""
    rests: list[timedelta] = []
    script = Script(stop, BrokerUnavailableError("unavailable"), False)
    worker(script.step, rest=lambda pause, _stop: rests.append(pause)).run(stop)
    assert rests == [POLL]
    assert len(stop.pauses) == 1
    assert stop.pauses[0] < POLL


def test_it_ends_when_it_is_drained_and_asks_only_after_a_step_without_work(stop: RecordingStop) -> None:
    script = Script(stop, True, False, False)
    answers = iter([False, True])
    worker(script.step, is_drained=lambda: next(answers)).run(stop)
    assert len(script.calls) == 3
    assert not stop.is_set


def test_it_takes_no_step_beyond_what_is_complete(stop: RecordingStop) -> None:
    script = Script(stop, True, True, True)
    worker(script.step, is_complete=lambda: len(script.calls) == 2).run(stop)
    assert len(script.calls) == 2


def test_question_whether_it_is_drained_may_fail_like_a_step(stop: RecordingStop) -> None:
    answers: list[bool | Exception] = [BrokerUnavailableError("unavailable"), True]

    def is_drained() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    worker(Script(stop, False, False).step, is_drained=is_drained).run(stop)
    assert answers == []
    assert not stop.is_set


def test_recovery_is_said_also_by_the_last_step(stop: RecordingStop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "outbox"):
        worker(Script(stop, BrokerUnavailableError("unavailable"), False).step, is_drained=lambda: True).run(stop)
    assert "broker recovered: service=agent worker=relay failures=1" in caplog.messages


def test_recovery_of_what_is_unproven_is_not_said(stop: RecordingStop, caplog: pytest.LogCaptureFixture) -> None:
    unproven: list[Collection[str]] = [("broker",), ()]
    script = Script(stop, BrokerUnavailableError("unavailable"), True)
    with caplog.at_level(logging.WARNING, "outbox"):
        loop = worker(script.step, unproven=lambda: unproven.pop(0))
        loop.turn()
        loop.turn()
        assert "recovered" not in caplog.text
        loop.turn()
    assert "broker recovered" in caplog.text


def test_progress_is_noted_before_each_step(stop: RecordingStop) -> None:
    script = Script(stop, True, AttributeError("a bug"))
    worker(script.step, note_progress=lambda: script.calls.append("noted")).run(stop)
    assert script.calls == ["noted", "step"] * 3


def test_stop_that_is_set_before_takes_no_step(stop: RecordingStop) -> None:
    script = Script(stop)
    stop.set()
    worker(script.step).run(stop)
    assert script.calls == []


@pytest.mark.parametrize("given", [False, BrokerUnavailableError("unavailable")], ids=["rest", "back-off"])
def test_stop_ends_a_pause_at_once(given: bool | Exception) -> None:
    stop, pausing, threads = StopFlag(), threading.Event(), Threads()
    wait = stop.wait

    def wait_long(_pause: timedelta, **_: Any) -> bool:
        pausing.set()
        return wait(timedelta(minutes=2))

    stop.wait = wait_long  # type: ignore[method-assign]
    threads.start(lambda: worker(Script(stop, given).step).run(stop))
    assert pausing.wait(30)
    began = monotonic()
    stop.set()
    wait_until(threads.are_all_over, timeout=30)
    threads.check_no_errors()
    assert monotonic() - began < 60


def test_end_of_the_process_is_no_error_to_go_on_after(stop: RecordingStop) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(interrupted).run(stop)
