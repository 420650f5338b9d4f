"""Connections that break while the servers stay: cut by a person, a proxy or a time-out, in the middle of anything."""

from __future__ import annotations

import random

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.databases import Database
from tests.acceptance.plans import Plan

_PROCESSES = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
OURS = {
    "mariadb": _PROCESSES,
    "mysql": _PROCESSES,
    "postgres": (
        "SELECT pid FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID()"
        " AND backend_type = 'client backend'"
    ),
}
CUT = {"mariadb": "KILL CONNECTION {}", "mysql": "KILL CONNECTION {}", "postgres": "SELECT PG_TERMINATE_BACKEND({})"}

NO_SUCH_THREAD = 1094


def cut_connections(database: Database, kind: str) -> int:
    """Cut every connection to the test's database but our own; return how many."""
    from MySQLdb import OperationalError

    found = [row[0] for row in database.query(OURS[kind])]
    for connection in found:
        try:
            database.execute(CUT[kind].format(connection))
        except OperationalError as error:
            if error.args[0] != NO_SUCH_THREAD:  # it has gone by itself in between
                raise
    return len(found)


@pytest.mark.parametrize("kind", ["mariadb", "mysql", "postgres"])
def test_lost_database_connection_costs_no_attempt(install: Install, kind: str) -> None:
    """Each event is a batch of its own: were the loss taken for the handler's fault, there is no other to blame."""
    installation = install(database=kind, options={"CONSUMER": {"BATCH_SIZE": 1}})
    workers = [installation.relay(), installation.consumer()]
    load = installation.start_load(
        Plan(prefix="k", threads=3, transactions=0, pause_ms=100, seed=61, fields={"sleep_ms": 10})
    )
    everybody = [load, *workers]
    dice = random.Random(61)
    for _ in range(8):
        target = len(installation.begun()) + dice.randint(10, 60)
        installation.wait(
            lambda target=target: len(installation.begun()) >= target,
            "work goes on",
            interval_s=0.002,
            alive=everybody,
        )
        assert cut_connections(installation.database, kind) >= 2
    load.stop()
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        assert "database unavailable, retrying" in worker.text
        worker.stop()
