"""Waiting for what a worker depends on: growing pauses, logged now and then, and when it is over."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from django.db import OperationalError, ProgrammingError

from outbox import signals
from outbox.coordination.connection_backoff import PAUSES, ConnectionBackoff, is_fault
from outbox.coordination.database_errors import ErrorKind
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError

ERROR = ConnectionError("refused")


def test_pauses_grow_and_stay_short_enough_to_be_back_soon() -> None:
    backoff = ConnectionBackoff("agent", "relay", rand=0.0)
    pauses = [backoff.record_failure("broker", ERROR) for _ in range(12)]

    assert pauses[0] == timedelta(milliseconds=200)
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSES.cap <= timedelta(seconds=5)


def test_pauses_start_anew_after_the_end() -> None:
    backoff = ConnectionBackoff("agent", "relay", rand=0.0)
    first = [backoff.record_failure("broker", ERROR) for _ in range(5)]
    backoff.record_success()

    assert backoff.record_failure("broker", ERROR) == first[0]


def test_outage_of_a_night_is_said_a_dozen_times_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    backoff = ConnectionBackoff("agent", "relay")
    with caplog.at_level(logging.WARNING, "outbox"):
        for _ in range(10_000):
            backoff.record_failure("broker", ERROR)
        assert 1 < len(caplog.records) <= 14
        caplog.clear()
        backoff.record_success()
        backoff.record_success()

    assert caplog.messages == ["broker recovered: service=agent worker=relay failures=10000"]


def test_end_is_said_of_each_that_failed_whatever_failed_last(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that comes back first drops the subscription: who was told that it is gone is told that it is back."""
    backoff = ConnectionBackoff("agent", "consumer", rand=0.0)
    with caplog.at_level(logging.WARNING, "outbox"):
        pauses = [backoff.record_failure("broker", ERROR) for _ in range(2)]
        pauses.append(backoff.record_failure("subscription", ERROR))
        pauses.append(backoff.record_failure("broker", ERROR))
        backoff.record_success()

    assert [message.partition(":")[0] for message in caplog.messages] == [
        "broker unavailable, retrying",
        "broker unavailable, retrying",
        "subscription unavailable, retrying",
        "broker recovered",
        "subscription recovered",
    ]
    assert [message.split("failures=")[1].split()[0] for message in caplog.messages] == ["1", "2", "1", "3", "1"]
    assert pauses == sorted(set(pauses)), "they grow, whatever fails"


def test_listeners_hear_of_beginning_and_end() -> None:
    heard: list[tuple[str, str, str]] = []

    def on_outage(sender: str, what: str, error: str, **_: object) -> None:
        heard.append((sender, what, error))

    def on_recovered(sender: str, what: str, **_: object) -> None:
        heard.append((sender, what, "back"))

    signals.outage.connect(on_outage)
    signals.recovered.connect(on_recovered)
    try:
        backoff = ConnectionBackoff("agent", "relay")
        backoff.record_failure("database", ERROR)
        backoff.record_success()
    finally:
        signals.outage.disconnect(on_outage)
        signals.recovered.disconnect(on_recovered)

    assert heard == [("agent", "database", "refused"), ("agent", "database", "back")]


@pytest.mark.parametrize(
    ("kind", "state"),
    [(ErrorKind.UNAVAILABLE, "unavailable"), (ErrorKind.DISCONNECTED, "unavailable"), (ErrorKind.CONFLICT, "busy")],
)
def test_log_line_begins_with_a_constant_text(kind: ErrorKind, state: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "outbox"):
        ConnectionBackoff("agent", "relay", rand=0.0).record_failure("database", ERROR, kind=kind)

    assert caplog.messages == [
        f"database {state}, retrying: service=agent worker=relay failures=1 pause_seconds=0.2 error=refused"
    ]


def test_fault_shows_its_traceback_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    backoff = ConnectionBackoff("agent", "relay")
    with caplog.at_level(logging.WARNING, "outbox"):
        for number in range(1000):
            backoff.record_fault(ValueError(f"number {number}"), using="default")
        backoff.record_fault(KeyError("another"), using="default")
        backoff.record_success()
        backoff.record_fault(ValueError("as before"), using="default")

    faults = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(faults) == 12
    assert [record.exc_info[0] for record in faults if record.exc_info] == [ValueError, KeyError]


def test_statement_that_was_refused_points_at_the_migrations(caplog: pytest.LogCaptureFixture) -> None:
    ConnectionBackoff("agent", "relay").record_fault(ProgrammingError(1146, "no such table"), using="orders")

    assert "relay failed, retrying: service=agent" in caplog.text
    assert "are its tables up to date? See `manage.py migrate --database orders`" in caplog.text


@pytest.mark.parametrize("error", [ValueError("a bug"), ProgrammingError(1146, "no such table")])
def test_fault_is_told_from_an_outage(error: Exception) -> None:
    assert is_fault(error, "default")


@pytest.mark.parametrize(
    "error",
    [
        BrokerUnavailableError("no connection"),
        LostSubscriptionError("revoked"),
        OperationalError("database is locked"),
        OperationalError("disk I/O error"),
    ],
)
def test_outage_is_no_fault(error: Exception) -> None:
    assert not is_fault(error, "default")
