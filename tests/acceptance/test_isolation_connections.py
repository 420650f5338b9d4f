"""A handler whose statement always ends its connection: counted apart from attempts, and dead in the end."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.isolation import SHORT_BACK_OFF, SHORT_LEASES, are_consumed
from tests.acceptance.probe.names import Act

MAX_INTERRUPTIONS = 5


@pytest.mark.parametrize(
    ("database", "broker", "act"),
    [
        ("mariadb", "table", "big_statement"),
        ("mysql", "kafka", "big_statement"),
        ("mariadb", "kafka", "lose_connection"),
        ("mysql", "table", "lose_connection"),
        ("postgres", "table", "lose_connection"),
        ("postgres", "kafka", "lose_connection"),
    ],
)
def test_event_that_always_loses_its_connection_dies_alone(
    install: Install, database: str, broker: str, act: Act
) -> None:
    """The statement is above the server's own ``max_allowed_packet``; the heartbeat's connection is the witness."""
    installation = install(database=database, broker=broker, options={"EVENTS": SHORT_BACK_OFF, "LEASES": SHORT_LEASES})
    events = [("step", {"key": f"k{n}", "n": n}) for n in range(20)]
    events.insert(10, ("misbehaving", {"key": "loser", "act": act}))
    event_ids = installation.publish(*events)
    loser = event_ids[10]
    workers = [installation.relay(), installation.consumer()]
    others = {event_id for event_id in event_ids if event_id != loser}
    installation.wait(lambda: are_consumed(installation, others), "the others went on", timeout_s=30, alive=workers)
    installation.wait(lambda: installation.row(loser).status == "dead", "the event died", alive=workers)
    row = installation.row(loser)
    assert row.retry_count == 0
    assert row.last_error is not None
    assert row.last_error.startswith(f"TooManyInterruptionsError: {MAX_INTERRUPTIONS} times in a row")
    installation.check(dead=[loser])
    for worker in workers:
        worker.stop()
