"""The supervisor keeps processes running, shows what they write, and leaves none behind."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from outbox.coordination.shutdown import StopFlag
from outbox.workers.supervisor import Supervisor
from tests.toys import ManualClock
from tests.waiting import wait_until

STARTED = "started as process "


class Script:
    """Stands in for ``subprocess.Popen``: processes that end after so many seconds of the clock, as the test says."""

    def __init__(self, clock: ManualClock, lifetimes: Sequence[float]) -> None:
        self.clock = clock
        self.started_at: list[float] = []
        self._lifetimes = list(lifetimes)

    def __call__(self, command: Sequence[str], **_: Any) -> Scripted:
        self.started_at.append(self.clock.now)
        return Scripted(self.clock, self.clock.now + self._lifetimes.pop(0), pid=len(self.started_at))


class Scripted:
    """A process of a script."""

    def __init__(self, clock: ManualClock, ends_at: float, *, pid: int) -> None:
        self.pid = pid
        self.stdout = io.StringIO("")
        self._clock, self._ends_at = clock, ends_at

    def poll(self) -> int | None:
        return 1 if self._clock.now >= self._ends_at else None

    def terminate(self) -> None:
        self._ends_at = self._clock.now

    def wait(self, timeout: float | None = None) -> int:
        assert self.poll() is not None
        return 1


class Passing(StopFlag):
    """A stop flag whose pauses let the clock pass; it is set when ``is_over`` says so."""

    def __init__(self, clock: ManualClock, is_over: Callable[[], bool]) -> None:
        super().__init__()
        self._clock, self._is_over = clock, is_over

    def wait(self, pause: timedelta, *, until: object = None) -> bool:
        self._clock.advance(pause.total_seconds())
        if self._is_over():
            self.set()
        return self.is_set


@pytest.mark.parametrize(
    ("lifetimes", "pauses"),
    [
        ([0.0] * 8, [1, 2, 4, 8, 16, 30, 30]),
        # What ran for half a minute is well: the pauses begin anew.
        ([0.0, 0.0, 31.0, 0.0, 0.0], [1, 2, 1, 2]),
        ([29.0, 29.0, 29.0], [1, 2]),
    ],
)
def test_what_ends_is_started_again_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch, lifetimes: list[float], pauses: list[int]
) -> None:
    clock = ManualClock()
    script = Script(clock, lifetimes)
    monkeypatch.setattr("outbox.workers.supervisor.subprocess.Popen", script)
    out = io.StringIO()

    stop = Passing(clock, lambda: len(script.started_at) == len(lifetimes))
    Supervisor({"worker": ["worker"]}, out=out, clock=clock).run(stop)

    ends = [at + lives for at, lives in zip(script.started_at, lifetimes, strict=True)]
    made = [later - end for end, later in zip(ends, script.started_at[1:], strict=False)]
    # It looks ten times a second.
    assert made == pytest.approx(pauses, abs=0.31)
    said = [line.rpartition(" in ")[2] for line in out.getvalue().splitlines() if "starts again" in line]
    assert said[: len(pauses)] == [f"{pause} s" for pause in pauses]


def test_one_that_ends_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    script = Script(clock, [0.0, 1000.0, 1000.0])
    monkeypatch.setattr("outbox.workers.supervisor.subprocess.Popen", script)
    out = io.StringIO()

    stop = Passing(clock, lambda: len(script.started_at) == 3)
    Supervisor({"bad": ["bad"], "good": ["good"]}, out=out, clock=clock).run(stop)

    assert out.getvalue().splitlines() == [
        "bad  | started as process 1",
        "good | started as process 2",
        "bad  | ended with code 1; starts again in 1 s",
        "bad  | started as process 3",
    ]


# --- real processes ----------------------------------------------------------------------------------------------

SLEEPS = "import signal, sys; sys.stdout.write('ready\\n'); sys.stdout.flush(); signal.pause()"
ENDS_WELL = (
    "import signal, sys\n"
    "def end(*_):\n"
    "    sys.stdout.write('last words\\n')\n"
    "    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
) + SLEEPS
IS_DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS + "\n" + "signal.pause()"


def python(code: str) -> list[str]:
    """Return the command that runs ``code``, as quickly as Python starts."""
    return [sys.executable, "-I", "-S", "-c", code]


class Lines(io.StringIO):
    """What the supervisor writes, line by line."""

    def of(self, name: str) -> list[str]:
        """Return the lines of one process, without its name."""
        fields = [line.partition(" | ") for line in self.getvalue().splitlines()]
        return [text for who, _, text in fields if who.rstrip() == name]

    def pids(self) -> list[int]:
        """Return all processes that were started."""
        return [int(line.rpartition(STARTED)[2]) for line in self.getvalue().splitlines() if STARTED in line]


class When(StopFlag):
    """A stop flag that is set when a condition has come true."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        super().__init__()
        self._condition = condition

    def wait(self, pause: timedelta, *, until: object = None) -> bool:
        wait_until(lambda: self._condition() or not super(When, self).wait(pause), timeout=30)
        if self._condition():
            self.set()
        return self.is_set


@contextmanager
def none_left(out: Lines) -> Iterator[None]:
    """Fail when a process is left at the end of the block, and end it."""
    yield
    left = [pid for pid in out.pids() if _is_there(pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left behind: {left}"


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_lines_have_the_name_in_front_down_to_the_last_words() -> None:
    out = Lines()
    noisy = python("import sys; sys.stderr.write('one\\n'); sys.stdout.write('two\\nthree, without an end')")
    commands = {"agent relay": python(ENDS_WELL), "bad": noisy, "bytes": python("import os; os.write(1, b'\\xff\\n')")}

    def is_over() -> bool:
        return "ready" in out.of("agent relay") and len(out.of("bad")) >= 5 and len(out.of("bytes")) >= 3

    with none_left(out):
        Supervisor(commands, out=out).run(When(is_over))

    assert out.of("agent relay")[1:] == ["ready", "last words"]
    assert out.of("bad")[1:5] == ["one", "two", "three, without an end", "ended with code 0; starts again in 1 s"]
    assert "\ufffd" in out.of("bytes")
    assert {line[:14] for line in out.getvalue().splitlines()} == {
        "agent relay | ",
        "bad         | ",
        "bytes       | ",
    }


def test_a_killed_process_is_started_again() -> None:
    clock = ManualClock()
    out = Lines()

    def step() -> bool:
        clock.advance(0.1)
        ready = out.of("worker").count("ready")
        if ready == 1 and len(out.pids()) == 1:
            with suppress(ProcessLookupError):  # it takes the supervisor a moment to notice
                os.kill(out.pids()[0], signal.SIGKILL)
        return ready == 2

    with none_left(out):
        Supervisor({"worker": python(SLEEPS)}, out=out, clock=clock).run(When(step))

    first, second = out.pids()
    assert first != second
    assert "ended with code -9; starts again in 1 s" in out.of("worker")


def test_what_does_not_end_by_itself_is_killed() -> None:
    """For the deaf one, half a minute of the clock passes at once; the other one gets its time to end well."""
    out = Lines()

    def clock() -> float:
        started = out.pids()
        return 31.0 if started and not _is_there(started[0]) else 0.0

    def is_over() -> bool:
        return out.of("deaf").count("ready") + out.of("well").count("ready") == 2

    with none_left(out):
        Supervisor({"well": python(ENDS_WELL), "deaf": python(IS_DEAF)}, out=out, clock=clock).run(When(is_over))

    assert out.of("deaf")[-1] == "did not end by itself; killed"
    assert out.of("well")[-1] == "last words"


def test_children_do_not_get_the_signals_of_the_terminal() -> None:
    """Ctrl-C goes to the whole group of a terminal; the children are told once, by the supervisor."""
    out = Lines()
    groups: list[int] = []

    def is_over() -> bool:
        if "ready" in out.of("worker"):
            groups.append(os.getpgid(out.pids()[0]))
        return bool(groups)

    with none_left(out):
        Supervisor({"worker": python(SLEEPS)}, out=out).run(When(is_over))

    assert groups[0] != os.getpgrp()


def test_children_are_ended_when_the_supervisor_fails() -> None:
    out = Lines()

    def fail() -> bool:
        if "ready" in out.of("worker"):
            raise LookupError
        return False

    with none_left(out), pytest.raises(LookupError):
        Supervisor({"worker": python(SLEEPS)}, out=out).run(When(fail))


def test_nothing_to_run_is_no_error() -> None:
    stop = StopFlag()
    stop.set()
    out = io.StringIO()
    Supervisor({}, out=out).run(stop)
    assert not out.getvalue()
