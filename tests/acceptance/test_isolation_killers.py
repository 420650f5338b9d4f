"""A handler that takes its process down: the other keys go on, and its event is dead after a few ends.

One that keeps the interpreter's lock for ever is such a handler too: the kernel ends its process
(``outbox.consumer.backstop``).
"""

from __future__ import annotations

import signal

import pytest

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from tests.acceptance.conftest import Install
from tests.acceptance.isolation import SHORT_BACK_OFF, SHORT_LEASES, Restarter, are_consumed, interruptions
from tests.acceptance.probe.names import EXIT_CODE, Act

MAX_INTERRUPTIONS = 5
EXIT_CODES: dict[Act, int] = {
    "exit": EXIT_CODE,
    "kill": -signal.SIGKILL,
    "segfault": -signal.SIGSEGV,
    "match": -BACKSTOP_SIGNAL,
}
OPTIONS = {
    "EVENTS": SHORT_BACK_OFF,
    "LEASES": SHORT_LEASES,
    "CONSUMER": {"HANDLER_TIME_LIMIT_SECONDS": 1.0, "HUNG_HANDLER_GRACE_SECONDS": 0.5},
}


@pytest.mark.parametrize(
    ("database", "broker", "act"),
    [
        ("mariadb", "table", "segfault"),
        ("mysql", "table", "exit"),
        ("postgres", "table", "kill"),
        ("sqlite", "table", "exit"),
        ("mariadb", "kafka", "exit"),
        ("mysql", "kafka", "kill"),
        ("mariadb", "kafka", "match"),
        pytest.param("postgres", "kafka", "segfault", marks=pytest.mark.long),
        pytest.param("mysql", "table", "match", marks=pytest.mark.long),
    ],
)
def test_event_that_ends_its_process_dies_alone(install: Install, database: str, broker: str, act: Act) -> None:
    """Its first end counts nothing, as a whole batch was at work; whoever takes its partition over is careful."""
    installation = install(database=database, broker=broker, options=OPTIONS)
    events = [("step", {"key": f"k{n}", "n": n}) for n in range(20)]
    events.insert(10, ("misbehaving", {"key": "killer", "act": act}))
    event_ids = installation.publish(*events)
    killer = event_ids[10]
    others = {event_id for event_id in event_ids if event_id != killer}
    relay = installation.relay()
    installation.wait(lambda: installation.statuses().keys() == {"published"}, "all is sent", alive=[relay])

    restarter = Restarter(installation, installation.consumer)
    restarter.wait(lambda: are_consumed(installation, others), "the other keys went on", timeout_s=60, alive=[relay])
    assert installation.row(killer).status != "dead"
    # The third may come right behind the others.
    assert len(restarter.exit_codes) <= 3, "the others waited for the killer"
    restarter.wait(lambda: installation.row(killer).status == "dead", "the killer died", timeout_s=150, alive=[relay])

    row = installation.row(killer)
    assert row.retry_count == 0
    assert interruptions(installation) == {row.id: MAX_INTERRUPTIONS}
    assert row.last_error is not None
    assert row.last_error.startswith(f"TooManyInterruptionsError: {MAX_INTERRUPTIONS} times in a row")
    assert set(restarter.exit_codes) == {EXIT_CODES[act]}
    assert len(restarter.exit_codes) <= MAX_INTERRUPTIONS + 2
    installation.check(dead=[killer])
    restarter.worker.stop()
    relay.stop()
