"""A signal sets a flag; a second one does what it did before."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

import pytest

from outbox.shutdown import StopFlag, stop_on_signals

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


def test_pause_says_that_nobody_asked() -> None:
    assert StopFlag().wait(timedelta(milliseconds=1)) is False
