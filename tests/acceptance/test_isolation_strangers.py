"""Other software that locks one row for a long time: the other keys do not wait for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.isolation import are_consumed, business_row_of, ids_of, interruptions, longest_delay_s
from tests.acceptance.plans import Plan

OTHERS_DELAY_S = 5.0
LONGER_THAN_RECORDS_ARE_HELD_S = 40.0
SHORT_S = 25.0

CASES = [("mariadb", "kafka"), ("mysql", "kafka"), ("postgres", "kafka"), ("mariadb", "table"), ("mysql", "table")]


@contextmanager
def locked_by_stranger(installation: Installation, rows: Mapping[str, Collection[int]]) -> Iterator[None]:
    """Have the rows of each table locked by another transaction within the block."""
    stranger = installation.database.connect()
    try:
        cursor = stranger.cursor()
        cursor.execute("BEGIN")
        for table, ids in rows.items():
            for row_id in ids:  # one by one: a scan of a small table would lock all of it
                cursor.execute(f"SELECT id FROM {table} WHERE id = %s FOR UPDATE", [row_id])
        yield
    finally:
        stranger.close()


@pytest.mark.parametrize(
    ("database", "broker", "locked_s"),
    [
        ("mariadb", "kafka", SHORT_S),
        ("mysql", "table", SHORT_S),
        ("postgres", "kafka", SHORT_S),
        *[pytest.param(*case, LONGER_THAN_RECORDS_ARE_HELD_S, marks=pytest.mark.long) for case in CASES],
    ],
)
def test_rows_that_a_stranger_locks_hold_up_no_other_key(
    install: Install, database: str, broker: str, locked_s: float
) -> None:
    """An outbox row that is sent, one that is not, and a business row that a handler writes."""
    installation = install(database=database, broker=broker, options={"RELAY": {"REDELIVER_AFTER_SECONDS": 5.0}})
    relay = installation.relay()
    sent, behind = installation.publish(("step", {"key": "sent", "n": 1}), ("step", {"key": "sent", "n": 2}))
    installation.wait(lambda: installation.statuses().keys() == {"published"}, "they are sent", alive=[relay])
    relay.stop()
    (pending,) = installation.publish(("step", {"key": "pending"}))
    business_row = business_row_of(installation, pending)
    (writing,) = installation.publish(("misbehaving", {"key": "writing", "act": "write_row", "row": business_row}))

    held_up = [sent, behind, pending, writing]
    locks = {
        "probe_outbox_messages": ids_of(installation, [sent, pending]),
        "probe_business_rows": {business_row},
    }
    with locked_by_stranger(installation, locks):
        locked_until = time.monotonic() + locked_s
        workers = [installation.relay(), installation.consumer()]
        load = installation.start_load(
            Plan(prefix="k", threads=2, keys=20, transactions=0, pause_ms=50, rollbacks=0, seed=72)
        )
        everybody = [load, *workers]
        installation.wait(installation.effects, "the consumer started", alive=everybody)
        since = installation.database.value(f"SELECT {installation.database.now}")
        installation.wait(lambda: time.monotonic() >= locked_until, "time went by", timeout_s=60, alive=everybody)
        assert not {row.status for row in installation.rows() if row.event_id in held_up} & {"consumed", "dead"}

    installation.wait(lambda: are_consumed(installation, held_up), "they are done", alive=everybody)
    load.stop()
    installation.wait_until_done(alive=workers)
    installation.check()
    assert not interruptions(installation)
    delay_s = longest_delay_s(installation, besides=ids_of(installation, held_up), since=since)
    assert delay_s <= OTHERS_DELAY_S
    for worker in workers:
        worker.stop()
