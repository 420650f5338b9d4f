"""Bounds on the database sessions of workers: how long they wait for locks, and how long they may hold any while idle.

A stranger's lock must not stop a worker for the server's default (50 s, a year, or for ever), and locks of a worker
that is frozen, or whose host died, must not stop its successor for hours. The bounds are those of threads that asked
for them, so that the sessions of the web are as they were.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

LOCK_WAIT: Final = timedelta(seconds=1)
_END: Final = {"mysql": "KILL %s", "postgresql": "SELECT pg_terminate_backend(%s)"}


@dataclass(slots=True)
class _Bounds:
    """What holds for the sessions of one thread."""

    using: str
    lock_wait: timedelta
    idle: timedelta | None
    used_at: float


class _Thread(threading.local):
    bounds: _Bounds | None = None


_thread: Final = _Thread()

_made: Final[WeakKeyDictionary[BaseDatabaseWrapper, Any]] = WeakKeyDictionary()
"""The driver's connection of each that Django has made to the end."""


@contextmanager
def worker_session(using: str, *, lock_wait: timedelta = LOCK_WAIT, idle: timedelta | None) -> Iterator[None]:
    """Bound the sessions that this thread opens within the block; those of ``using`` also in their idle time.

    ``lock_wait`` is the longest wait for one lock, of rows or of a table's definition. After ``idle`` the server ends a
    session of ``using`` that says nothing, and so frees its locks (None: its own time). Where there can be no lost
    session, on SQLite, nothing is set. The connection of ``using`` is closed at both ends of the block.
    """
    earlier = _thread.bounds
    connections[using].close()
    bound_sessions(using, lock_wait=lock_wait, idle=idle)
    try:
        yield
    finally:
        _thread.bounds = earlier
        connections[using].close()


def bound_sessions(using: str, *, lock_wait: timedelta = LOCK_WAIT, idle: timedelta | None) -> None:
    """Bound the sessions that this thread opens from now on, as ``worker_session`` does: for a pool's threads."""
    _thread.bounds = _Bounds(using, lock_wait, idle, time.monotonic())


def close_if_idle() -> None:
    """Close the connection that this thread has not used for half of its idle time: the server may have ended it.

    Call it right before the database is used and nowhere else: it counts as a use. It is a look at the clock.
    """
    bounds = _thread.bounds
    if bounds is None or bounds.idle is None:
        return
    now = time.monotonic()
    if now - bounds.used_at > bounds.idle.total_seconds() / 2 and not connections[bounds.using].in_atomic_block:
        connections[bounds.using].close()
    bounds.used_at = now


@contextmanager
def own_transaction(using: str) -> Iterator[None]:
    """Open a worker's own transaction on ``using``, over a connection that can commit it."""
    close_unusable()
    try:
        with transaction.atomic(using=using):
            yield
    finally:
        close_incomplete(connections[using])


def close_unusable() -> None:
    """Close those of this thread's connections that are broken, or are not as Django makes them.

    Django looks at them at the end of a request (``django.db.close_old_connections``); workers have none.
    """
    for connection in connections.all(initialized_only=True):
        close_incomplete(connection)
        if connection.errors_occurred and connection.connection is not None and not connection.in_atomic_block:
            if connection.is_usable():
                connection.errors_occurred = False
            else:
                connection.close()


def close_incomplete(connection: BaseDatabaseWrapper) -> None:
    """Close ``connection`` where its making or the end of a transaction was cut short: Django goes on with it.

    Not set back to autocommit, nothing that is done on it is ever committed: each block believes that another one
    around it sees to that. A ``KILL QUERY`` that meets MariaDB's ``SET autocommit=1`` is enough. Made in part, it has
    not the isolation level and bounds that it should.
    """
    if connection.connection is None or connection.in_atomic_block:
        return
    has_autocommit = connection.autocommit == connection.settings_dict["AUTOCOMMIT"]
    if not has_autocommit or _made.get(connection) is not connection.connection:
        connection.close()


def ping(connection: BaseDatabaseWrapper) -> None:
    """Ask the database for an answer over ``connection``.

    :raises DatabaseError: there is none.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def bound_sqlite_wait(connection: BaseDatabaseWrapper, wait: timedelta) -> None:
    """Bound how long a session of SQLite waits for the writer's lock."""
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {_milliseconds(wait)}")


def end_session(connection: BaseDatabaseWrapper, session_id: int) -> None:
    """Have the server end the session that it calls ``session_id``, over ``connection``, which is another one's."""
    with connection.cursor() as cursor:
        cursor.execute(_END[connection.vendor], [session_id])


def make_savepoint(connection: BaseDatabaseWrapper, name: str) -> None:
    """Make a savepoint that Django knows nothing of."""
    with connection.cursor() as cursor:
        cursor.execute(f"SAVEPOINT {name}")


def release_savepoint(connection: BaseDatabaseWrapper, name: str) -> None:
    """Release it.

    :raises DatabaseError: it is not there any more: the transaction that it was made in has ended.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"RELEASE SAVEPOINT {name}")


def _see_new_session(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    bounds = _thread.bounds
    if bounds is not None:
        _bound_new_session(connection, bounds)
    _made[connection] = connection.connection


def _bound_new_session(connection: BaseDatabaseWrapper, bounds: _Bounds) -> None:
    # Of another database it is not known how long ago a handler used it last: an idle session would be missed.
    idle = bounds.idle if connection.alias == bounds.using else None
    try:
        if connection.vendor == "mysql":
            _bound_on_mysql(connection, bounds.lock_wait, idle)
        elif connection.vendor == "postgresql":
            _bound_on_postgresql(connection, bounds.lock_wait, bounds.idle)
    except BaseException:
        connection.close()  # Django would go on with a session that has no bounds
        raise


def _bound_on_mysql(connection: BaseDatabaseWrapper, lock_wait: timedelta, idle: timedelta | None) -> None:
    seconds = max(1, math.ceil(lock_wait.total_seconds()))
    values = {"innodb_lock_wait_timeout": seconds, "lock_wait_timeout": seconds}
    if idle is not None:
        values["wait_timeout"] = max(1, math.ceil(idle.total_seconds()))
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION " + ", ".join(f"{name} = {value}" for name, value in values.items()))


def _bound_on_postgresql(connection: BaseDatabaseWrapper, lock_wait: timedelta, idle: timedelta | None) -> None:
    values = {"lock_timeout": _milliseconds(lock_wait)}
    if idle is not None:
        # Harmless to a session outside of a transaction, so it is for any database.
        values["idle_in_transaction_session_timeout"] = _milliseconds(idle)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT " + ", ".join(f"SET_CONFIG('{name}', '{value}', FALSE)" for name, value in values.items())
        )


def _milliseconds(value: timedelta) -> int:
    return max(1, math.ceil(value / timedelta(milliseconds=1)))


connection_created.connect(_see_new_session, dispatch_uid="outbox.storage.sessions")
