"""A handler that does not return: what Python can interrupt goes on in its process, what it cannot ends it."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from outbox.consumer.watchdog import HUNG_EXIT_CODE
from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.isolation import SHORT_BACK_OFF, SHORT_LEASES, are_consumed, interruptions
from tests.acceptance.plans import Plan
from tests.acceptance.probe.names import Act
from tests.acceptance.promises import check_effects
from tests.acceptance.workers import Worker

OPTIONS = {
    "EVENTS": SHORT_BACK_OFF,
    "LEASES": SHORT_LEASES,
    "CONSUMER": {"HANDLER_TIME_LIMIT_SECONDS": 2.0, "HUNG_HANDLER_GRACE_SECONDS": 1.0},
}


def publish_around_hung(installation: Installation, act: Act) -> list[str]:
    """Publish an event whose first attempt does not return, one behind it in its key, and others; it comes first."""
    return installation.publish(
        ("misbehaving", {"key": "hung", "act": act, "times": 1}),
        ("step", {"key": "hung", "n": 1}),
        *[("step", {"key": f"k{n}", "n": n}) for n in range(20)],
    )


def check_attempts(installation: Installation, hung: str, others: Collection[str]) -> None:
    """Check that the hung event paid one attempt, that nobody else did, and that each took effect once, in order."""
    rows = installation.rows()
    assert {row.event_id: row.retry_count for row in rows} == {hung: 1, **dict.fromkeys(others, 0)}
    assert not interruptions(installation)
    effects = installation.effects()
    check_effects(rows, effects, in_order=None)
    assert [effect.attempt for effect in effects if effect.event_id == hung] == [2]


@pytest.mark.parametrize(
    ("database", "broker", "act"),
    [
        ("mariadb", "kafka", "receive"),
        ("mysql", "table", "swallow"),
        ("mysql", "kafka", "swallow"),
        ("postgres", "table", "receive"),
        pytest.param("postgres", "kafka", "swallow", marks=pytest.mark.long),
        pytest.param("mariadb", "table", "swallow", marks=pytest.mark.long),
    ],
)
def test_handler_that_never_returns_ends_its_process_and_pays_alone(
    install: Install, database: str, broker: str, act: Act
) -> None:
    """The agent service is consumed in the same process: nothing of it is counted, and nobody suspects it then."""
    installation = install(database=database, broker=broker, options=OPTIONS)
    relays = [installation.relay("probe"), installation.relay("agent")]
    load = installation.start_load(
        Plan(prefix="a", kind="snapshot", threads=1, transactions=0, pause_ms=20, rollbacks=0, seed=71)
    )
    hung, *others = publish_around_hung(installation, act)
    everybody: list[Worker] = [load, *relays]
    consumer = installation.consumer("agent", "probe")
    installation.wait(lambda: consumer.exit_code is not None, "the hung process ended", alive=everybody)
    assert consumer.exit_code == HUNG_EXIT_CODE, consumer.text
    row = installation.row(hung)
    assert row.retry_count == 1
    assert row.last_error is not None
    assert row.last_error.startswith("HandlerTimeoutError: the handler did not return within 2 s")
    assert not interruptions(installation, "probe")
    assert not interruptions(installation, "agent")
    left = installation.database.query("SELECT service FROM outbox_workers WHERE role = 'consumer'")
    assert not left, "whoever takes over would be careful without reason"

    successor = installation.consumer("agent", "probe")
    everybody.append(successor)
    installation.wait(lambda: are_consumed(installation, [hung, *others]), "the partition went on", alive=everybody)
    load.stop()
    installation.wait_until_done(service="agent", alive=[successor, *relays])
    check_attempts(installation, hung, others)
    harmed = [row for row in installation.rows("agent") if row.status != "consumed" or row.retry_count]
    assert not harmed
    for worker in (successor, *relays):
        worker.stop()


@pytest.mark.parametrize(
    ("database", "broker"), [("mariadb", "table"), ("mysql", "kafka"), ("postgres", "kafka"), ("sqlite", "table")]
)
def test_endless_loop_is_interrupted_and_its_process_goes_on(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker, options=OPTIONS)
    hung, *others = publish_around_hung(installation, "loop")
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    check_attempts(installation, hung, others)
    begun = [mark.pid for mark in installation.begun()]
    assert set(begun) == {workers[1].pid}
    for worker in workers:
        worker.stop()
    assert "interrupting: probe.misbehaving" in workers[1].text
