"""The database connections of a thread whose handler is late: ended by another thread, thrown away by its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


def end_of_session(database: BaseDatabaseWrapper) -> Callable[[], object] | None:
    """Return what ends the session of another thread's connection at the server, by a connection of its own thread.

    What that other thread waits for in the driver ends with an error, and its locks are free. SQLite has no sessions:
    its statement at work is interrupted. Which session it is, is asked now: the connection may be another one later.
    """
    driver: Any = database.connection
    if driver is None or database.closed_in_transaction:
        return None
    try:
        if database.vendor == "sqlite":
            return partial(driver.interrupt)
        if database.vendor == "mysql":
            return partial(_execute, database.alias, "KILL %s", driver.thread_id())
        if database.vendor == "postgresql":
            return partial(_execute, database.alias, "SELECT pg_terminate_backend(%s)", driver.info.backend_pid)
    except Exception:  # noqa: BLE001 - the driver's own error: the connection is closed
        return None
    return None


def _execute(alias: str, statement: str, session_id: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, [session_id])


def throw_away(databases: Iterable[BaseDatabaseWrapper], *, depths: Mapping[BaseDatabaseWrapper, int]) -> None:
    """Close this thread's ``databases`` and put Django's account of their transactions right.

    An interruption may come in the middle of Django's entering or leaving of an atomic block. ``depths`` says in how
    many blocks a database was before: those are still to be left, and a later transaction is to begin afresh.
    """
    for database in databases:
        with suppress(Exception):  # closing what was ended at the server may fail; it is thrown away all the same
            database.close()
        depth = depths.get(database, 0)
        del database.atomic_blocks[depth:]
        if depth:
            # The outermost block has a savepoint only where the transaction was begun by hand.
            del database.savepoint_ids[depth - 1 if database.commit_on_exit else depth :]
            database.in_atomic_block = database.needs_rollback = True
        else:
            _leave_transaction(database)


def _leave_transaction(database: BaseDatabaseWrapper) -> None:
    database.savepoint_ids.clear()
    database.in_atomic_block = database.needs_rollback = False
    if database.closed_in_transaction:
        database.connection, database.closed_in_transaction = None, False
    if database.connection is not None:  # Django leaves SQLite's databases in memory open
        with suppress(Exception):
            database.rollback()
            database.set_autocommit(database.settings_dict["AUTOCOMMIT"])
