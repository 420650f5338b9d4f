"""The database connections of a thread whose handler is late: ended by another thread, thrown away by its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.log_text import get_logger
from outbox.storage.sessions import end_session

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """A connection and the server's name for it, asked by the thread that owns it: drivers let no other one ask."""

    database: BaseDatabaseWrapper
    driver: Any
    session_id: int | None
    """None for SQLite, which has no server."""

    @property
    def is_open(self) -> bool:
        """Say whether its thread still has this connection."""
        return self.database.connection is self.driver and not self.database.closed_in_transaction

    def end(self) -> None:
        """End it from another thread, over a connection of that thread's own.

        What its thread waits for in the driver ends with an error, and its locks are free.
        """
        if self.session_id is None:
            self.driver.interrupt()
            return
        end_session(connections[self.database.alias], self.session_id)


def session_of(database: BaseDatabaseWrapper) -> Session | None:
    """Return the session of a connection of this thread; None where there is none, or it cannot be ended."""
    driver: Any = database.connection
    if driver is None or database.closed_in_transaction:
        return None
    try:
        if database.vendor == "sqlite":
            return Session(database, driver, None)
        if database.vendor == "mysql":
            return Session(database, driver, driver.thread_id())
        if database.vendor == "postgresql":
            return Session(database, driver, driver.info.backend_pid)
    except Exception:
        logger.exception(
            "session of database %s is unknown, a late handler's wait for it cannot be ended", database.alias
        )
    return None


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
