"""Strangers that hold one row for long, through every loss of their connection, and hosts that stand still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

import MySQLdb

from tests.acceptance.databases import MariaDBDatabase
from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.ledger import Hold, SqlRow
from tests.chaos.schedule import TimedFault

_LOOK_S: Final = 0.5
_LOCK_COMES_S: Final = 10.0
_DUE_S: Final = 2

Lock = Callable[[MariaDBDatabase, Any], frozenset[str] | None]
"""Locks a row with a cursor, with another connection at hand; returns the keys that wait for it, None for nothing."""


class Holder:
    """A stranger with a transaction, who begins anew when it was ended."""

    def __init__(self, cluster: Cluster, what: str, lock: Lock) -> None:
        self._cluster, self._what, self._lock = cluster, what, lock
        self._is_over = threading.Event()
        self.has_locked = threading.Event()
        self.holds = 0
        self._thread = threading.Thread(target=self._run, name=f"holder-{what}", daemon=True)

    def __enter__(self) -> Holder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            with (
                suppress(MySQLdb.OperationalError, MySQLdb.InterfaceError, MissedError),
                self._cluster.database() as database,
                closing(database.connect()) as connection,
            ):
                connection.autocommit(False)
                self._hold(database, connection)
            self._is_over.wait(_LOOK_S)

    def _hold(self, database: MariaDBDatabase, connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")
        keys = self._lock(database, cursor)
        if keys is None:
            return
        began_at = lives_at = time.time()
        self.holds += 1
        self.has_locked.set()
        try:
            while not self._is_over.wait(_LOOK_S):
                cursor.execute("SELECT 1")
                lives_at = time.time()
            connection.rollback()
        finally:
            self._cluster.ledger.holds.append(Hold(began_at, lives_at, self._what, keys))


@contextmanager
def hold_business_row(cluster: Cluster, fault: TimedFault) -> Iterator[int]:
    """Lock the business row of an event of one's own; give its id.

    :raises MissedError: there is none, or it could not be locked.
    """
    (event_id,) = cluster.publisher.publish(("step", {"key": f"{fault.name}-{fault.at_s}-target"}))
    with cluster.database() as database:
        target = int(database.value(f"SELECT MAX(id) FROM probe_business_rows WHERE event_id = '{event_id}'"))

    def lock(_: MariaDBDatabase, cursor: Any) -> frozenset[str] | None:
        cursor.execute(f"SELECT id FROM probe_business_rows WHERE id = {target} FOR UPDATE")
        return frozenset()

    with Holder(cluster, fault.name, lock) as holder:
        if not holder.has_locked.wait(_LOCK_COMES_S):
            raise MissedError("the row could not be locked")
        yield target


@injects("outbox-holder")
def _hold_outbox_row(cluster: Cluster, fault: TimedFault) -> str:
    prefix = f"{fault.name}-{fault.at_s}"

    def lock(database: MariaDBDatabase, cursor: Any) -> frozenset[str] | None:
        return _lock_unfinished(database, cursor, prefix) or _lock_new(cluster, database, cursor, prefix)

    with Holder(cluster, fault.name, lock) as holder:
        if not holder.has_locked.wait(_LOCK_COMES_S):
            raise MissedError("no row could be locked")
        cluster.rest(fault.length_s)
    return f"{holder.holds} times, one after the other"


def _lock_new(cluster: Cluster, database: MariaDBDatabase, cursor: Any, prefix: str) -> frozenset[str] | None:
    """Write a row that is due in a moment, and lock it before relay and consumer come to it."""
    key = f"{prefix}-{time.monotonic_ns()}"
    cluster.ledger.sql_rows[key] = SqlRow(key, "consumed", "", is_certain=False)
    database.execute(
        "INSERT INTO probe_outbox_messages (event_type, message_key, payload, next_retry_at)"
        f" VALUES ('probe.step', %s, %s, UTC_TIMESTAMP(6) + INTERVAL {_DUE_S} SECOND)",
        [key, f'{{"payload": {{"key": "{key}", "n": 1}}}}'],
    )
    return _lock_unfinished(database, cursor, prefix)


def _lock_unfinished(database: MariaDBDatabase, cursor: Any, prefix: str) -> frozenset[str] | None:
    """Lock the newest of a stranger's own rows that is not at its end."""
    found = database.query(
        "SELECT id, message_key FROM probe_outbox_messages WHERE status IN ('pending', 'published')"
        f" AND message_key LIKE '{prefix}-%' ORDER BY id DESC LIMIT 1"
    )
    for row_id, key in found:
        cursor.execute(f"SELECT status FROM probe_outbox_messages WHERE id = {row_id} FOR UPDATE")
        if cursor.fetchone()[0] in {"pending", "published"}:
            return frozenset({key})
    return None
