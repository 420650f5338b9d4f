"""What administrators and their scripts do to a database: kill transactions, limit statements, rename a table."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import MySQLdb
from MySQLdb import OperationalError

from tests.acceptance.databases import MariaDBDatabase
from tests.acceptance.test_lost_connections import NO_SUCH_THREAD, cut_connections
from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.ledger import Hold
from tests.chaos.schedule import TimedFault
from tests.waiting import DeadlineError, wait_until

_CONNECTIONS: Final = (
    "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() ORDER BY id"
)
_OLD_TRANSACTIONS: Final = (
    "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_mysql_thread_id <> 0"
    " AND trx_started < NOW() - INTERVAL 1 SECOND"
)
_LIMIT_MS: Final = 50

TABLE: Final = "agent_outbox_messages"
AWAY: Final = f"{TABLE}_away"

_INSISTS_S: Final = 60.0


@injects("kill-one")
def _kill_one_after_the_other(cluster: Cluster, fault: TimedFault) -> str:
    dice, killed = random.Random(fault.dice), 0
    end_s = cluster.elapsed_s + fault.length_s
    with cluster.database() as database:
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            if found := database.query(_CONNECTIONS):
                killed += _kill(database, dice.choice(found)[0])
            cluster.rest(0.2 + 0.6 * dice.random())
    return f"{killed} connections"


@injects("dba-killer")
def _kill_old_transactions(cluster: Cluster, fault: TimedFault) -> str:
    killed = 0
    end_s = cluster.elapsed_s + fault.length_s
    with cluster.database() as database:
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            killed += sum(_kill(database, row[0]) for row in database.query(_OLD_TRANSACTIONS))
            cluster.rest(0.25)
    return f"{killed} transactions"


def _kill(database: MariaDBDatabase, connection: int) -> int:
    try:
        database.execute(f"KILL CONNECTION {connection}")
    except OperationalError as error:
        if error.args[0] != NO_SUCH_THREAD:
            raise
        return 0
    return 1


@injects("statement-limit")
def _limit_statements(cluster: Cluster, fault: TimedFault) -> str:
    """Have the server end whatever takes longer; a session has the limit that was there when it began."""
    name, low = (
        ("max_execution_time", _LIMIT_MS) if cluster.servers.is_mysql else ("max_statement_time", 0.001 * _LIMIT_MS)
    )
    with cluster.database() as database:
        database.execute(f"SET GLOBAL {name} = {low}")
        try:
            count = cut_connections(database, "mariadb")
            cluster.rest(fault.length_s)
        finally:
            insist(cluster, f"SET GLOBAL {name} = 0")
            insist_on_cut(cluster)
    return f"{name} = {low} for {count} connections"


@injects("table-missing")
def _take_table_away(cluster: Cluster, fault: TimedFault) -> str:
    with cluster.database() as database:
        try:
            database.execute("SET SESSION lock_wait_timeout = 3")
            database.execute(f"RENAME TABLE {TABLE} TO {AWAY}")
        except OperationalError as error:
            insist_on_table(cluster)
            raise MissedError(f"the table could not be renamed: {error}") from error
    began_at = time.time()
    try:
        cluster.rest(fault.length_s)
    finally:
        insist_on_table(cluster)
        cluster.ledger.holds.append(Hold(began_at, time.time(), fault.name))
    return TABLE


def insist_on_table(cluster: Cluster) -> None:
    """Have the table be where it belongs, whatever has become of it."""

    def put_back(database: MariaDBDatabase) -> None:
        if database.query(f"SHOW TABLES LIKE '{AWAY}'"):
            database.execute(f"RENAME TABLE {AWAY} TO {TABLE}")

    _insist(cluster, put_back)


def insist_on_cut(cluster: Cluster) -> None:
    """Have every session begin anew."""
    _insist(cluster, lambda database: cut_connections(database, "mariadb"))


def insist(cluster: Cluster, sql: str) -> None:
    """Have a statement carried out as soon as the database is there."""
    _insist(cluster, lambda database: database.execute(sql))


def _insist(cluster: Cluster, do: Callable[[MariaDBDatabase], object]) -> None:
    failed: list[Exception] = []

    def is_done() -> bool:
        try:
            with cluster.database() as database:
                do(database)
        except (MissedError, MySQLdb.Error) as error:
            failed[:] = [error]
            return False
        return True

    try:
        wait_until(is_done, timeout=_INSISTS_S, interval=0.5)
    except DeadlineError:
        raise failed[0] from None
