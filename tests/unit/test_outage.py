"""Waiting out an outage: growing pauses, said now and then, and said when it is over."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from outbox import signals
from outbox.outage import PAUSES, OutageWatch

ERROR = ConnectionError("refused")


def test_pauses_grow_and_stay_short_enough_to_be_back_soon() -> None:
    watch = OutageWatch("agent", "relay", rand=0.0)
    pauses = [watch.failed("broker", ERROR) for _ in range(12)]

    assert pauses[0] == timedelta(milliseconds=200)
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSES.cap <= timedelta(seconds=5)


def test_pauses_start_anew_after_the_end() -> None:
    watch = OutageWatch("agent", "relay", rand=0.0)
    first = [watch.failed("broker", ERROR) for _ in range(5)]
    watch.over()

    assert watch.failed("broker", ERROR) == first[0]


def test_outage_of_a_night_is_said_a_dozen_times_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = OutageWatch("agent", "relay")
    with caplog.at_level(logging.WARNING, "outbox"):
        for _ in range(10_000):
            watch.failed("broker", ERROR)
        assert 1 < len(caplog.records) <= 14
        caplog.clear()
        watch.over()
        watch.over()

    assert [record.getMessage() for record in caplog.records] == ["relay of agent: the broker is back"]


def test_listeners_hear_of_beginning_and_end() -> None:
    heard: list[tuple[str, str, str]] = []

    def on_outage(sender: str, what: str, error: str, **_: object) -> None:
        heard.append((sender, what, error))

    def on_recovered(sender: str, what: str, **_: object) -> None:
        heard.append((sender, what, "back"))

    signals.outage.connect(on_outage)
    signals.recovered.connect(on_recovered)
    try:
        watch = OutageWatch("agent", "relay")
        watch.failed("database", ERROR)
        watch.over()
    finally:
        signals.outage.disconnect(on_outage)
        signals.recovered.disconnect(on_recovered)

    assert heard == [("agent", "database", "refused"), ("agent", "database", "back")]
