"""Servers that go away under load: nobody's fault, no process ends, no event loses an attempt, all is delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from scripts.services import control
from tests.acceptance.conftest import Install
from tests.acceptance.plans import Plan
from tests.acceptance.workers import Worker

pytestmark = pytest.mark.disruptive

NAMES = {"kafka": "broker", "mariadb": "database", "mysql": "database"}
ON_EACH = pytest.mark.parametrize(
    ("server", "usual_database"),
    [("kafka", "mariadb"), ("mariadb", "mariadb"), ("mysql", "mysql")],
    indirect=True,
    ids=NAMES,
)

TAKE_AWAY: dict[str, Callable[[str], None]] = {"stopped": control.stop, "killed": control.kill}

LOAD = Plan(prefix="k", threads=3, transactions=0, pause_ms=60, seed=51, fields={"sleep_ms": 2})

SOON_NOTICED = {"RELAY": {"SEND_TIMEOUT_SECONDS": 5.0}}
"""A relay calls the broker away when a batch has no answer for so long."""

HANGS_S = 8
"""Longer than leases and sessions last."""

STOPS_S = 25
"""Time-outs of a batch and of a connection included."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the name of a server that may be taken away; it is back after the test, whatever happens."""
    name: str = request.param
    if not control.is_managed(name):
        pytest.skip(f"{name} is run by somebody else")
    yield name
    control.start(name)


@pytest.mark.parametrize("how", TAKE_AWAY)
@ON_EACH
def test_outage_is_nobodys_fault(install: Install, server: str, how: str) -> None:
    installation = install(options=SOON_NOTICED)
    workers = [installation.relay(), installation.consumer(), installation.consumer()]
    load = installation.start_load(LOAD)
    everybody = [load, *workers]
    installation.wait(lambda: installation.statuses()["consumed"] > 100, "work was under way", alive=everybody)
    TAKE_AWAY[how](server)
    installation.wait(
        lambda: all(_says_away(worker, server) for worker in workers), "every worker says so", alive=everybody
    )
    control.start(server)
    installation.database.close()
    before = installation.statuses()["consumed"]
    installation.wait(lambda: installation.statuses()["consumed"] > before + 100, "work goes on", alive=everybody)
    load.stop()
    installation.wait_until_done(alive=workers)
    installation.check()
    # All is done as soon as one of two consumers is back: the other one may still pause, or be outside of the group.
    installation.wait(
        lambda: all(_says_back(worker, server) for worker in workers), "every worker goes on", alive=workers
    )
    for worker in workers:
        worker.stop()


@ON_EACH
def test_server_that_hangs_is_an_outage_too(install: Install, server: str) -> None:
    """Its connections stay open and nothing answers, and then everything that waited goes on at once."""
    installation = install()
    workers = [installation.relay(), installation.consumer()]
    load = installation.start_load(LOAD)
    everybody = [load, *workers]
    installation.wait(lambda: installation.statuses()["consumed"] > 50, "work was under way", alive=everybody)
    control.pause(server)
    try:
        assert load.is_alive_after(seconds=HANGS_S), load.text
    finally:
        control.resume(server)
    before = installation.statuses()["consumed"]
    installation.wait(lambda: installation.statuses()["consumed"] > before + 100, "work goes on", alive=everybody)
    load.stop()
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        worker.stop()


@ON_EACH
def test_workers_that_start_during_an_outage_wait_for_its_end(install: Install, server: str) -> None:
    installation = install(broker_options={"request_timeout_seconds": 3.0} if server == "kafka" else {})
    installation.publish(("step", {"key": "k", "n": 1}))
    control.stop(server)
    workers = [installation.relay(), installation.consumer()]
    installation.wait(
        lambda: all(_says_away(worker, server) for worker in workers), "every worker says so", alive=workers
    )
    control.start(server)
    installation.database.close()
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        worker.stop()


@ON_EACH
def test_workers_can_be_stopped_during_an_outage(install: Install, server: str) -> None:
    """They have work in hand that they cannot bring to its end; they end all the same, and nothing is lost."""
    installation = install(options=SOON_NOTICED)
    workers = [installation.relay(), installation.consumer()]
    load = installation.start_load(LOAD)
    installation.wait(lambda: installation.statuses()["consumed"] > 50, "work was under way", alive=workers)
    control.kill(server)
    installation.wait(
        lambda: all(_says_away(worker, server) for worker in workers), "every worker says so", alive=workers
    )
    for worker in workers:
        worker.stop(timeout_s=STOPS_S)
    control.start(server)
    installation.database.close()
    load.stop()
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check()


def _says_away(worker: Worker, server: str) -> bool:
    """A consumer that has nothing to do asks no database; its heartbeat does."""
    if f"{NAMES[server]} unavailable, retrying" in worker.text:
        return True
    return NAMES[server] == "database" and "heartbeat failed, retrying" in worker.text


def _says_back(worker: Worker, server: str) -> bool:
    if f"{NAMES[server]} unavailable, retrying" in worker.text:
        return f"{NAMES[server]} recovered" in worker.text
    return "heartbeat resumed" in worker.text
