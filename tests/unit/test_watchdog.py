"""A handler call has a time limit, and its interruption meets nothing but the handler."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from outbox.consumer import watchdog as module
from outbox.consumer.watchdog import HUNG_EXIT_CODE, Watchdog
from outbox.exceptions import HandlerTimeoutError
from tests.threads import together
from tests.toys import ManualClock
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_connections")

LIMIT_S = 0.05
LONG_S = 60.0


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads begin without a database: this is about threads alone."""
    monkeypatch.setattr(module.connections, "all", lambda **_: [])


@pytest.fixture
def exits() -> list[int]:
    """Collect what the process was to end with."""
    return []


@pytest.fixture
def watchdog(exits: list[int]) -> Iterator[Watchdog]:
    watchdog = Watchdog(grace=timedelta(seconds=30), tick=timedelta(milliseconds=5), end_process=exits.append)
    yield watchdog
    watchdog.close()


def call(
    watchdog: Watchdog,
    function: Callable[[], object],
    *,
    limit_s: float = LIMIT_S,
    name: str = "order.placed",
    on_hung: Callable[[], None] | None = None,
) -> object:
    return watchdog.call(lambda _: function(), None, limit_s=limit_s, using="default", name=name, on_hung=on_hung)


def loop_for(seconds: float) -> None:
    """Run Python code, as a handler that computes does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def loop_until(ended: list[int]) -> None:
    """Run Python code until ``ended`` holds something.

    A function of its own, because CPython 3.13 leaves the backward jump of a loop out of the ``try`` around it.
    """
    while not ended:
        pass


def test_a_call_in_time_gives_what_the_function_gave(watchdog: Watchdog) -> None:
    assert watchdog.call(str, 7, limit_s=LONG_S, using="default", name="order.placed") == "7"


def test_an_error_in_time_goes_through_unchanged(watchdog: Watchdog) -> None:
    error = SystemExit(3)

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        call(watchdog, fail, limit_s=LONG_S)

    assert raised.value is error
    assert raised.value.__context__ is None


def test_a_python_loop_is_interrupted_and_the_error_says_where(watchdog: Watchdog) -> None:
    with pytest.raises(
        HandlerTimeoutError, match=r"within 0\.05 s \(time limit of event type 'order\.placed'\)"
    ) as late:
        call(watchdog, lambda: loop_for(LONG_S))

    assert late.value.limit == timedelta(seconds=LIMIT_S)
    assert "in loop_for" in "".join(traceback.format_exception(late.value))


def test_small_sleeps_are_interrupted(watchdog: Watchdog) -> None:
    def doze() -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, doze)


def test_a_handler_that_swallows_the_interruption_and_returns_is_late(watchdog: Watchdog) -> None:
    def swallow() -> str:
        try:
            loop_for(LONG_S)
        except BaseException:  # noqa: BLE001 - as handlers do
            return "done"
        return "never"

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, swallow)


def test_a_handler_that_makes_another_error_of_the_interruption_is_late(watchdog: Watchdog) -> None:
    def disguise() -> None:
        try:
            loop_for(LONG_S)
        except BaseException:  # noqa: BLE001 - as handlers do
            raise LookupError("disguised") from None

    with pytest.raises(HandlerTimeoutError) as late:
        call(watchdog, disguise)

    assert late.value.__cause__ is None  # the error of a connection that was ended is no reason to see an outage
    assert isinstance(late.value.__context__, LookupError)


def test_the_late_connections_error_is_not_its_cause(watchdog: Watchdog) -> None:
    def fail() -> None:
        raise ConnectionError("killed")

    def late() -> None:
        try:
            loop_for(LONG_S)
        finally:
            fail()

    with pytest.raises(HandlerTimeoutError) as raised:
        call(watchdog, late)

    assert raised.value.__cause__ is None


def test_a_late_handler_is_interrupted_once(watchdog: Watchdog) -> None:
    interruptions = []

    def clean_up_for_long() -> None:
        try:
            loop_for(LONG_S)
        except BaseException as error:
            interruptions.append(error)
            loop_for(LIMIT_S * 3)
            raise

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, clean_up_for_long)

    assert len(interruptions) == 1


def test_an_interruption_that_was_lost_comes_once_more(exits: list[int]) -> None:
    """Callbacks of drivers and finalizers let no exception out."""
    watchdog = Watchdog(grace=timedelta(seconds=2), tick=timedelta(milliseconds=5), end_process=exits.append)

    def lose_it() -> None:
        with suppress(BaseException):
            loop_for(LONG_S)
        loop_for(LONG_S)

    try:
        with pytest.raises(HandlerTimeoutError):
            call(watchdog, lose_it)
    finally:
        watchdog.close()
    assert exits == []


def test_nothing_is_raised_while_no_handler_runs(watchdog: Watchdog) -> None:
    call(watchdog, lambda: None)
    loop_for(LIMIT_S * 5)

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, lambda: loop_for(LONG_S))
    loop_for(LIMIT_S * 5)


def test_a_thread_is_looked_after_that_came_later(watchdog: Watchdog) -> None:
    call(watchdog, lambda: None)

    def late(_: int) -> bool:
        try:
            call(watchdog, lambda: loop_for(LONG_S))
        except HandlerTimeoutError:
            return True
        return False

    assert together(late, range(3)) == [True] * 3


def test_slots_of_threads_that_ended_are_forgotten(watchdog: Watchdog) -> None:
    together(lambda _: call(watchdog, lambda: loop_for(0.05), limit_s=LONG_S), range(3))  # they have been looked at

    wait_until(lambda: len(watchdog._slots) == 0)


def test_it_works_again_after_being_closed(watchdog: Watchdog) -> None:
    call(watchdog, lambda: None)
    watchdog.close()

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, lambda: loop_for(LONG_S))


# --- calls within calls -------------------------------------------------------------------------------------------


def test_an_inner_call_has_its_own_shorter_limit_and_the_outer_goes_on(watchdog: Watchdog) -> None:
    def outer() -> str:
        with pytest.raises(HandlerTimeoutError, match="'inner'"):
            call(watchdog, lambda: loop_for(LONG_S), name="inner")
        return "went on"

    assert call(watchdog, outer, limit_s=LONG_S, name="outer") == "went on"


def test_an_inner_call_ends_with_the_outer_limit(watchdog: Watchdog) -> None:
    def outer() -> None:
        call(watchdog, lambda: loop_for(LONG_S), name="inner", limit_s=LONG_S)

    with pytest.raises(HandlerTimeoutError, match="'outer'") as late:
        call(watchdog, outer, name="outer")
    assert late.value.limit == timedelta(seconds=LIMIT_S)


def test_the_outer_limit_holds_again_after_an_inner_call(watchdog: Watchdog) -> None:
    def outer() -> None:
        call(watchdog, lambda: None, name="inner", limit_s=LONG_S)
        loop_for(LONG_S)

    with pytest.raises(HandlerTimeoutError, match="'outer'"):
        call(watchdog, outer, name="outer")


def test_an_outer_call_that_swallows_the_inner_error_is_late_all_the_same(watchdog: Watchdog) -> None:
    """Its connections were closed with the inner call's."""

    def outer() -> None:
        with pytest.raises(HandlerTimeoutError):
            call(watchdog, lambda: loop_for(LONG_S), name="inner", limit_s=LONG_S)

    with pytest.raises(HandlerTimeoutError, match="'outer'"):
        call(watchdog, outer, name="outer")


# --- what does not return -----------------------------------------------------------------------------------------


def hang(
    watchdog: Watchdog, exits: list[int], *, until: Callable[[], object] = lambda: True, **options: object
) -> None:
    """Call a handler that swallows everything until the process was to end, and ``until`` is true, for 10 s at most."""

    def swallow() -> None:
        while not exits:
            with suppress(BaseException):
                loop_until(exits)
        wait_until(until)

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, swallow, **options)  # type: ignore[arg-type]


@pytest.fixture
def strict(exits: list[int]) -> Iterator[Watchdog]:
    watchdog = Watchdog(grace=timedelta(milliseconds=100), tick=timedelta(milliseconds=5), end_process=exits.append)
    yield watchdog
    watchdog.close()


def test_what_does_not_return_is_written_down_before_the_process_ends(strict: Watchdog, exits: list[int]) -> None:
    seen: list[tuple[list[int], bool]] = []
    caller = threading.current_thread()
    hang(strict, exits, on_hung=lambda: seen.append((list(exits), threading.current_thread() is caller)))

    assert exits == [HUNG_EXIT_CODE]
    assert seen == [([], False)]


def test_the_log_says_where_a_handler_hangs(
    strict: Watchdog, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def critical() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]

    # The line is waited for no longer than the grace period, which is short here: the handler hangs until it is there.
    hang(strict, exits, until=critical)

    [text] = critical()
    assert "order.placed" in text
    assert "in swallow" in text


def test_the_process_ends_when_writing_it_down_fails(
    strict: Watchdog, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError("no such row")

    hang(strict, exits, on_hung=fail)

    assert exits == [HUNG_EXIT_CODE]
    wait_until(lambda: "no such row" in caplog.text)


def test_the_process_ends_when_writing_it_down_hangs(strict: Watchdog, exits: list[int]) -> None:
    released = threading.Event()
    try:
        hang(strict, exits, on_hung=lambda: (released.wait(), None)[1])
    finally:
        released.set()

    assert exits == [HUNG_EXIT_CODE]


def test_the_process_ends_when_the_log_hangs(strict: Watchdog, exits: list[int]) -> None:
    """A handler may hang while it holds the lock of a logging handler."""
    released = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            released.wait()

    stuck = Stuck()
    module.logger.addHandler(stuck)
    try:
        hang(strict, exits)
    finally:
        released.set()
        module.logger.removeHandler(stuck)

    assert exits == [HUNG_EXIT_CODE]


def test_an_inner_call_that_hangs_is_written_down_by_the_outer_one(strict: Watchdog, exits: list[int]) -> None:
    seen = []

    with pytest.raises(HandlerTimeoutError):
        call(strict, lambda: hang(strict, exits, limit_s=LONG_S), on_hung=lambda: seen.append("outer"))

    assert seen == ["outer"]


def test_swallowing_in_inner_calls_does_not_put_off_the_end(strict: Watchdog, exits: list[int]) -> None:
    """Each of them is interrupted by itself; the grace period is that of the outer call."""

    def call_until(exits: list[int]) -> None:
        while not exits:
            with suppress(HandlerTimeoutError):
                call(strict, lambda: loop_for(0.02), limit_s=LONG_S)

    def outer() -> None:
        while not exits:
            with suppress(BaseException):
                call_until(exits)

    with pytest.raises(HandlerTimeoutError):
        call(strict, outer)

    assert exits == [HUNG_EXIT_CODE]


def test_returning_within_the_grace_period_ends_no_process(watchdog: Watchdog, exits: list[int]) -> None:
    def slow_to_end() -> None:
        try:
            loop_for(LONG_S)
        finally:
            loop_for(LIMIT_S * 3)

    with pytest.raises(HandlerTimeoutError):
        call(watchdog, slow_to_end)
    loop_for(LIMIT_S)

    assert exits == []


def test_limits_are_of_the_given_clock(clock: ManualClock) -> None:
    """An hour of the wall clock is nothing while the given one stands still."""
    watchdog = Watchdog(grace=timedelta(seconds=30), tick=timedelta(milliseconds=1), clock=clock)
    try:
        call(watchdog, lambda: loop_for(0.05), limit_s=10.0)

        def pass_time() -> None:
            clock.now += 11.0
            loop_for(LONG_S)

        with pytest.raises(HandlerTimeoutError):
            call(watchdog, pass_time, limit_s=10.0)
    finally:
        watchdog.close()


# --- the race of every call with its limit ------------------------------------------------------------------------

STRESS_LIMIT_S = 0.001
STRESS_TICK_S = 0.0002
SURELY_LATE_S = 1.0
SWITCH_S = 20e-6
"""Threads take turns this often, so that they meet at every place of each other's code."""
CALLS = 2_000
THREADS = 4


def _race(watchdog: Watchdog, seed: int) -> tuple[int, int]:
    """Make calls that end right at their limit, in every way; return how many were in time and how many were late."""
    rand = random.Random(seed)

    def once(way: int) -> int:
        loop_for(STRESS_LIMIT_S * rand.uniform(0.7, 1.6))
        if way == 1:
            raise LookupError("its own")
        if way == 2:
            try:
                loop_for(STRESS_LIMIT_S)
            except BaseException:  # noqa: BLE001 - as handlers do
                return way
        if way == 3:
            watchdog.call(loop_for, STRESS_LIMIT_S * 0.3, limit_s=LONG_S, using="default", name="inner")
        return way

    in_time = late = 0
    for _ in range(CALLS):
        way = rand.randrange(4)
        began = time.monotonic()
        is_late = False
        try:
            assert watchdog.call(once, way, limit_s=STRESS_LIMIT_S, using="default", name="race") == way
        except LookupError:
            assert way == 1
        except HandlerTimeoutError:
            is_late = True
        took_s = time.monotonic() - began
        assert took_s >= STRESS_LIMIT_S or not is_late, "reported late, and was in time"
        assert took_s < SURELY_LATE_S or is_late, "was late, and nobody said so"
        in_time, late = in_time + (not is_late), late + is_late
        for _ in range(200):  # what arrived after its call would arrive here
            pass
    loop_for(0.05)
    return in_time, late


def test_no_interruption_leaves_the_call_that_it_is_for(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many thousands of calls that end right at their limit, on several threads."""
    monkeypatch.setattr(module.logger, "disabled", True)
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    watchdog = Watchdog(grace=timedelta(seconds=60), tick=timedelta(seconds=STRESS_TICK_S), end_process=exits.append)
    try:
        results = together(lambda seed: _race(watchdog, seed), range(THREADS))
    finally:
        sys.setswitchinterval(switch_s)
        watchdog.close()

    in_time, late = (sum(column) for column in zip(*results, strict=True))
    assert in_time + late == CALLS * THREADS
    assert min(in_time, late) > CALLS * THREADS / 20, (in_time, late)  # both sides of the limit were met
    assert exits == []


FROZEN = """
import os, signal, sys, threading, time
from datetime import timedelta
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from outbox.consumer.watchdog import Watchdog

def work(_):
    end = time.monotonic() + 8.0  # of which it is frozen for six
    print("begun", flush=True)
    while time.monotonic() < end:
        time.sleep(0.01)

Watchdog(grace=timedelta(seconds=30)).call(work, None, limit_s=4.0, using="default", name="toy")
print("done", flush=True)
"""


def test_time_in_which_the_process_stood_still_is_no_time_of_the_handler() -> None:
    process = subprocess.Popen([sys.executable, "-c", FROZEN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        thawed = threading.Timer(6.0, process.send_signal, [signal.SIGCONT])
        thawed.start()
        assert process.communicate(timeout=30)[0] == "done\n"
    finally:
        process.kill()
        process.wait()


KEEPS_THE_LOCK = """
import time
from datetime import timedelta
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from outbox.exceptions import HandlerTimeoutError
from outbox.consumer.watchdog import Watchdog

begun = time.monotonic()
sum(range(10**7))
two_seconds = int(2 * 10**7 / (time.monotonic() - begun))

def work(_):
    end = time.monotonic() + 40.0
    while time.monotonic() < end:
        sum(range(two_seconds))  # in one call, in which no other thread gets the interpreter's lock

try:
    Watchdog(grace=timedelta(seconds=30)).call(work, None, limit_s=3.0, using="default", name="toy")
except HandlerTimeoutError:
    print("late")
"""


def test_time_in_which_the_handler_keeps_the_interpreters_lock_is_time_of_the_handler() -> None:
    """The watchdog comes late then too, and nothing stood still."""
    run = subprocess.run(
        [sys.executable, "-c", KEEPS_THE_LOCK], capture_output=True, text=True, timeout=60, check=False
    )

    assert run.stdout == "late\n", run.stderr
