"""Asking the broker how far its groups are behind lets no page wait for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError
from outbox.workers.lag import LagProbe
from tests.toys import ManualClock
from tests.waiting import wait_until

ROUTES = [ServiceRoute.by_rule("agent", namespace="app")]
LONG = timedelta(seconds=10)


class SlowBroker:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.lag = 5
        self.may_answer = threading.Event()

    def read(self, routes: Sequence[ServiceRoute]) -> dict[str, int | None]:
        self.asked += 1
        assert self.may_answer.wait(10)
        return {route.service: self.lag for route in routes}


def test_page_does_not_wait_for_a_slow_broker() -> None:
    broker = SlowBroker()
    probe = LagProbe(broker.read, patience=timedelta(0), clock=ManualClock())
    report = probe.report(ROUTES)
    assert (report.lags, report.problem, report.age) == ({}, "the table broker has not answered within 0 s", None)
    broker.may_answer.set()
    wait_until(lambda: probe.report(ROUTES).lags == {"agent": 5})


def test_one_thread_asks_at_a_time() -> None:
    broker = SlowBroker()
    probe = LagProbe(broker.read, patience=timedelta(0), clock=ManualClock())
    for _ in range(5):
        probe.report(ROUTES)
    assert broker.asked == 1
    broker.may_answer.set()


def test_fresh_answer_is_used_again() -> None:
    broker, clock = SlowBroker(), ManualClock()
    broker.may_answer.set()
    probe = LagProbe(broker.read, patience=LONG, clock=clock)
    probe.report(ROUTES)
    clock.advance(1)
    assert probe.report(ROUTES).lags == {"agent": 5}
    assert broker.asked == 1
    broker.lag = 6
    clock.advance(60)
    assert probe.report(ROUTES).lags == {"agent": 6}


def test_old_answer_is_shown_with_its_age_while_the_broker_is_slow() -> None:
    broker, clock = SlowBroker(), ManualClock()
    broker.may_answer.set()
    probe = LagProbe(broker.read, patience=timedelta(0), clock=clock)
    wait_until(lambda: probe.report(ROUTES).lags)
    broker.may_answer.clear()
    clock.advance(60)
    report = probe.report(ROUTES)
    assert (report.lags, report.age) == ({"agent": 5}, timedelta(seconds=60))
    broker.may_answer.set()


def test_outage_is_told_in_the_brokers_words() -> None:
    def fail(routes: Sequence[ServiceRoute]) -> dict[str, int | None]:
        raise BrokerUnavailableError("connection refused")

    report = LagProbe(fail, patience=LONG).report(ROUTES)
    assert (report.lags, report.problem) == ({}, "connection refused")


def test_error_of_ours_is_told_too() -> None:
    def fail(routes: Sequence[ServiceRoute]) -> dict[str, int | None]:
        raise ZeroDivisionError("by zero")

    problem = LagProbe(fail, patience=LONG).report(ROUTES).problem
    assert "ZeroDivisionError" in problem
    assert "by zero" not in problem, "what nobody foresaw may quote a password"
