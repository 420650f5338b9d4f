"""Strangers that hold one row for long, through every loss of their connection, and hosts that stand still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

import MySQLdb

from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.ledger import Hold
from tests.chaos.schedule import TimedFault

_LOOK_S: Final = 0.5
_LOCK_COMES_S: Final = 10.0

Lock = Callable[[Any], frozenset[str] | None]
"""Locks a row with a cursor; returns the keys that wait for it, or None when there is nothing to lock."""


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
                suppress(MySQLdb.Error, MissedError),
                self._cluster.database() as database,
                closing(database.connect()) as connection,
            ):
                connection.autocommit(False)
                self._hold(connection)
            self._is_over.wait(_LOOK_S)

    def _hold(self, connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, SESSION innodb_lock_wait_timeout = 2")
        keys = self._lock(cursor)
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

    def lock(cursor: Any) -> frozenset[str] | None:
        cursor.execute(f"SELECT id FROM probe_business_rows WHERE id = {target} FOR UPDATE")
        return frozenset()

    with Holder(cluster, fault.name, lock) as holder:
        if not holder.has_locked.wait(_LOCK_COMES_S):
            raise MissedError("the row could not be locked")
        yield target


@injects("outbox-holder")
def _hold_outbox_row(cluster: Cluster, fault: TimedFault) -> str:
    with Holder(cluster, fault.name, lock_unfinished) as holder:
        if not holder.has_locked.wait(_LOCK_COMES_S):
            raise MissedError("no unfinished row could be locked")
        cluster.rest(fault.length_s)
    return f"{holder.holds} rows, one after the other"


def lock_unfinished(cursor: Any) -> frozenset[str] | None:
    """Lock the newest row that nobody has locked and that is not at its end; return its key."""
    cursor.execute(
        "SELECT id FROM probe_outbox_messages WHERE status IN ('pending', 'published')"
        " AND message_key LIKE 'wide.%' ORDER BY id DESC LIMIT 20"
    )
    for (row_id,) in cursor.fetchall():
        cursor.execute(
            f"SELECT status, message_key FROM probe_outbox_messages WHERE id = {row_id} FOR UPDATE SKIP LOCKED"
        )
        found = cursor.fetchone()
        if found is not None and found[0] in {"pending", "published"}:
            return frozenset({found[1]})
    return None
