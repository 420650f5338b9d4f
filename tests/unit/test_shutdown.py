"""A signal sets a flag; a second one does what it did before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

import pytest

from outbox.coordination.shutdown import StopFlag, stop_on_signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Install handlers of our own and give the list of signals they got."""
    got: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        got.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    yield got
    for number, restored in before.items():
        signal.signal(number, restored)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_asks_to_stop(earlier: list[int], number: int) -> None:
    with stop_on_signals() as stop:
        assert not stop.is_set
        signal.raise_signal(number)
        assert stop.is_set
    assert earlier == []


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_does_what_it_did_before(earlier: list[int], number: int, second: int) -> None:
    with stop_on_signals():
        signal.raise_signal(number)
        signal.raise_signal(second)
        assert earlier == [second]


def test_earlier_handlers_come_back(earlier: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before

    def fail() -> None:
        with stop_on_signals():
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_blocks_can_be_nested(earlier: list[int]) -> None:
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert (inner.is_set, outer.is_set) == (True, False)
        signal.raise_signal(signal.SIGTERM)
        assert outer.is_set
    assert earlier == []


def test_pause_ends_early_when_asked_to_stop() -> None:
    stop = StopFlag()
    started = time.monotonic()
    threading.Timer(0.02, stop.set).start()

    assert stop.wait(timedelta(seconds=30)) is True
    assert time.monotonic() - started < 15


def test_everybody_who_waits_is_woken_and_stays_so() -> None:
    stop = StopFlag()
    woken: list[bool] = []
    waiting = [threading.Thread(target=lambda: woken.append(stop.wait(timedelta(seconds=30)))) for _ in range(5)]
    for thread in waiting:
        thread.start()
    stop.set()
    for thread in waiting:
        thread.join(15)

    assert woken == [True] * 5
    assert stop.wait(timedelta(seconds=30)) is True
    assert stop.wait(timedelta(0)) is True


WAITS_FOR_SIGNALS = """
import os, signal, threading
from datetime import timedelta
from outbox.coordination.shutdown import stop_on_signals

for round in range(300):
    with stop_on_signals() as stop:
        threading.Timer(0.0005, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while not stop.wait(timedelta(0)):
            pass
print("ended")
"""


def test_signal_in_the_middle_of_a_wait_ends_it() -> None:
    """The handler runs on the thread that waits, wherever that is: also where it holds what waiting needs."""
    result = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_SIGNALS], capture_output=True, text=True, timeout=60, check=False
    )

    assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr


def test_pause_says_that_nobody_asked() -> None:
    assert StopFlag().wait(timedelta(milliseconds=1)) is False
