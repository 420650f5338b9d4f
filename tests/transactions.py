"""Other transactions on the same database, at the same time, and connections that end badly."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connections, transaction


class OtherTransaction:
    """A transaction on a thread and a connection of its own."""

    def __init__(self, alias: str, work: Callable[[], Any]) -> None:
        self._alias, self._work = alias, work
        self._connection_id: int | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self) -> Any:
        """Wait until it is over; return what it did, or raise what it raised."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the other transaction never came through"
        if self._error is not None:
            raise self._error
        return self._result

    def is_waiting_for_a_lock(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._connection_id is None:
            return False
        with connections[self._alias].cursor() as cursor:
            if connections[self._alias].vendor == "postgresql":
                cursor.execute(
                    "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
                    [self._connection_id],
                )
                return bool(cursor.fetchone()[0])
            # Not from information_schema.innodb_trx: it shows an old picture to whoever asks more often than its cache
            # is renewed. Somebody waits, and this one is in the middle of a statement.
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
            somebody_waits = int(cursor.fetchone()[1]) > 0
            cursor.execute(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND command = 'Query'"
                " AND info LIKE '%%FOR UPDATE%%'",
                [self._connection_id],
            )
            return somebody_waits and bool(cursor.fetchone()[0])

    def _run(self) -> None:
        try:
            with transaction.atomic(using=self._alias):
                self._connection_id = connection_id_of(self._alias)
                self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again on the test's thread
            self._error = error
        finally:
            connections[self._alias].close()


@contextmanager
def held_elsewhere(alias: str, work: Callable[[], Any], then: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Have another transaction do ``work``, keep its locks for the block, do ``then`` and commit.

    It gives up after half a minute: who waits for it inside of the block fails the test instead of hanging it.
    """
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        work()
        holds.set()
        assert let_go.wait(30), "somebody waited for the locks of another transaction"
        then()

    other = OtherTransaction(alias, hold)
    other.start()
    assert holds.wait(30) or other.result(), "the other transaction never began"
    try:
        yield
    finally:
        let_go.set()
        other.result()


def connection_id_of(alias: str) -> int:
    """Return the server's name for this thread's connection."""
    own = {"mysql": "CONNECTION_ID()", "postgresql": "PG_BACKEND_PID()"}[connections[alias].vendor]
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT {own}")
        return int(cursor.fetchone()[0])


def deadlock_of(alias: str) -> Exception:
    """Return the error of the alias's driver for a lost deadlock."""
    vendor = connections[alias].vendor
    if vendor == "mysql":
        return OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
    if vendor == "sqlite":
        return OperationalError("database is locked")
    error = OperationalError("deadlock detected")
    error.__cause__ = type("DeadlockDetected", (Exception,), {"sqlstate": "40P01"})()
    return error


def kill_own_connection(alias: str) -> None:
    """Have the server end this thread's connection, as an administrator or its shutdown does."""
    connection_id = connection_id_of(alias)
    killer = second_connection(alias)
    with killer.cursor() as cursor:
        if killer.vendor == "mysql":
            cursor.execute(f"KILL {connection_id}")
        else:
            cursor.execute("SELECT PG_TERMINATE_BACKEND(%s)", [connection_id])
    killer.close()


def drop_own_connection(alias: str) -> None:
    """Cut the line under this thread's connection, as a network does: nobody says a word."""
    line = socket.socket(fileno=os.dup(connections[alias].connection.pgconn.socket))
    line.shutdown(socket.SHUT_RDWR)
    line.close()


def second_connection(alias: str) -> Any:
    """Return one more connection for this thread; close it."""
    connection = connections.create_connection(alias)
    connection.settings_dict = connections[alias].settings_dict
    return connection
