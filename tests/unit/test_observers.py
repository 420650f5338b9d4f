"""The progress log adds up what signals tell, and goes away without a trace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.dispatch import Signal

from outbox import signals
from outbox.workers.observers import progress_log
from tests.toys import ManualClock
from tests.waiting import wait_until

ALL = [value for value in vars(signals).values() if isinstance(value, Signal)]


Lines = Callable[[], list[logging.LogRecord]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return a function that returns what was logged."""
    caplog.set_level(logging.INFO, logger="outbox.workers.observers")
    return lambda: caplog.records


def test_each_service_has_a_line_with_all_that_was_told(lines: Lines, clock: ManualClock) -> None:
    with progress_log(clock=clock) as log:
        signals.relayed.send_robust("agent", count=20)
        signals.consumed.send_robust("agent", count=30, event_types={"a": 30})
        signals.retried.send_robust(
            "agent", outbox_id=1, event_type="a", attempt=1, delay=timedelta(0), error=ValueError()
        )
        signals.waited.send_robust("agent", count=2)
        signals.refused.send_robust("task", outbox_id=1, reason="too large")
        signals.buried.send_robust("task", outbox_id=2, event_type="b", reason="broken")
        signals.rejected.send_robust("task", count=3, reasons=["a", "b", "c"])
        signals.redelivered.send_robust("task", count=4)
        clock.advance(10)
        log.flush()
        texts = [line.getMessage() for line in lines()]
        assert texts[0] == (
            "agent: in 10.0 s published 20 (2.0/s), consumed 30 (3.0/s), retried 1, waited 2, dead 0, rejected 0, "
            "redelivered 0"
        )
        assert texts[1].startswith("task: in 10.0 s published 0 (0.0/s), consumed 0 (0.0/s)")
        assert texts[1].endswith("retried 0, waited 0, dead 2, rejected 3, redelivered 4")
        assert {line.levelno for line in lines()} == {logging.INFO}
        assert len({line.msg for line in lines()}) == 1, "one constant text, so that lines can be grouped"


def test_nothing_is_said_of_an_idle_service(lines: Lines, clock: ManualClock) -> None:
    with progress_log(clock=clock) as log:
        signals.relayed.send_robust("agent", count=1)
        log.flush()
        lines().clear()
        clock.advance(3600)
        log.flush()
    assert lines() == []


def test_idle_time_does_not_thin_the_rate(lines: Lines, clock: ManualClock) -> None:
    with progress_log(clock=clock) as log:
        clock.advance(3600)
        log.flush()
        signals.consumed.send_robust("agent", count=100, event_types={})
        clock.advance(10)
        log.flush()
    assert "consumed 100 (10.0/s)" in lines()[0].getMessage()


def test_work_is_said_while_it_goes_on(lines: Lines) -> None:
    with progress_log(interval=timedelta(milliseconds=10)):
        signals.relayed.send_robust("agent", count=1)
        wait_until(lines, message="a line before the end")


def test_the_rest_is_said_at_the_end(lines: Lines) -> None:
    with progress_log():
        signals.relayed.send_robust("agent", count=7)
        assert lines() == []
    assert "published 7" in lines()[0].getMessage()


def test_nobody_listens_afterwards() -> None:
    before = [len(signal.receivers) for signal in ALL]
    with progress_log():
        assert [len(signal.receivers) for signal in ALL] != before
    assert [len(signal.receivers) for signal in ALL] == before
