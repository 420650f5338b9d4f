"""What happens to a database that is up: killed transactions, limited statements, a renamed table, a full disk."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import MySQLdb
from MySQLdb import OperationalError

from scripts.services.errors import ServicesError
from scripts.services.server import NativeServer
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
_ENDS_S: Final = 30.0

FULL: Final = 1114
"""The table is full: how a server says that it finds no space."""

_BALLAST: Final = {
    "probe_effects": (
        "outbox_id, event_id, message_key, n, attempt, worker_pid",
        "(0, 'ballast', 'ballast', 0, 0, 0)",
    ),
    "probe_outbox_messages": (
        "event_type, message_key, payload, status",
        "('probe.step', 'ballast', '{}', 'consumed')",
    ),
}
"""What takes the free pages within a table's file, of which there are up to four megabytes; it is never committed."""

_BALLAST_ROWS: Final = 20
"""In a statement: MariaDB may find no page to roll back a larger one that was refused, and ends itself then."""

_BALLAST_PAUSE_S: Final = 0.5


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
        except MySQLdb.Error as error:  # that there is no such table is no OperationalError
            insist_on_table(cluster)
            raise MissedError(f"the table could not be renamed: {error}") from error
    began_at = time.time()
    try:
        cluster.rest(fault.length_s)
    finally:
        insist_on_table(cluster)
        cluster.ledger.holds.append(Hold(began_at, time.time(), fault.name))
    return TABLE


@injects("database-full")
def _fill_disk(cluster: Cluster, fault: TimedFault) -> str:
    """Leave no space on the disk, none in the file of a handlers' table, and then none in that of an outbox table.

    Both at once would keep events from handlers, as nobody could publish any.
    """
    disk = cluster.servers.disk
    half_s = cluster.elapsed_s + 0.5 * fault.length_s
    end_s = cluster.elapsed_s + fault.length_s
    ballast = _Ballast(cluster)
    disk.fill()
    try:
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            ballast.take_pages("probe_effects", until_s=end_s)
            if cluster.elapsed_s > half_s:
                ballast.take_pages("probe_outbox_messages", until_s=end_s)
            cluster.rest(_BALLAST_PAUSE_S)
    finally:
        disk.free()  # first: a rollback may need pages
        ballast.close()
        server = cluster.servers.by_name["database"]
        has_ended = not server.status().startswith("serves")
        _start_again(server)  # MariaDB ends itself when it finds no page for a rollback
    if not ballast.refused:
        raise MissedError(f"the server found space all the time; {ballast.trouble}")
    ended = ", and the server ended itself" if has_ended else ""
    return f"the server refused {ballast.refused} of our statements{ended}"


def _start_again(server: NativeServer) -> None:
    """Start a server that may be about to end: until it has, its port is taken."""

    def starts() -> bool:
        try:
            server.start()
        except ServicesError:
            return False
        return True

    try:
        wait_until(starts, timeout=_ENDS_S, interval=0.5)
    except DeadlineError:
        server.start()  # says what is in the way


class _Ballast:
    """Rows of a transaction that is never committed."""

    def __init__(self, cluster: Cluster) -> None:
        self.refused = 0
        self.trouble = ""
        self._cluster = cluster
        self._connection: Any = None

    def take_pages(self, table: str, *, until_s: float) -> None:
        """Insert into a table until not even one row fits; a connection that was killed is made anew."""
        columns, values = _BALLAST[table]
        count = _BALLAST_ROWS
        try:
            cursor = self._cursor()
            while count and self._cluster.elapsed_s < until_s:
                try:
                    cursor.execute(f"INSERT INTO {table} ({columns}) VALUES {', '.join([values] * count)}")
                except MySQLdb.OperationalError as error:
                    if error.args[0] != FULL:
                        raise
                    self.refused += 1
                    count //= 4
        except (MySQLdb.OperationalError, MySQLdb.InterfaceError, MissedError) as error:
            self.trouble = str(error)
            self.close()

    def _cursor(self) -> Any:
        if self._connection is None:
            with self._cluster.database() as database:
                self._connection = database.connect()
            self._connection.autocommit(False)
            self._connection.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")  # no gap locks
        return self._connection.cursor()

    def close(self) -> None:
        """Take it all back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(MySQLdb.Error):
                connection.close()


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
