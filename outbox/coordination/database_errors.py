"""What a database error says about its cause, by its code: may the same statement succeed later, and at whose cost?

An error carries no alias, and a code means something to one vendor only: whoever asks names the database that the
error came from.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Set
from typing import Final, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import DatabaseError, InterfaceError, OperationalError

from outbox.coordination import error_codes as codes

Code = TypeVar("Code", int, str)


class ErrorKind(enum.Enum):
    """What to do about a database error."""

    UNAVAILABLE = "unavailable"
    """The server is down, starting, full, read-only, out of memory or connections: wait; it costs nobody anything."""
    DISCONNECTED = "disconnected"
    """This connection ended, and the error does not say why: the server, the network, or what was done on it."""
    CONFLICT = "conflict"
    """Others were in the way, or the time was up: roll back and do it again."""
    PERMANENT = "permanent"
    """The statement's own: it fails as often as it is sent."""


def classify(error: BaseException, vendor: str) -> ErrorKind | None:
    """Return what the code of ``error`` says; None where it has none, or one that is not in the tables.

    ``vendor`` is that of Django's connection, or ``"mariadb"``: above 3999 MySQL and MariaDB use the same numbers for
    different errors. For ``"mysql"`` those have MySQL's meaning.
    """
    if not isinstance(error, (DatabaseError, InterfaceError)) or vendor not in _CLASSIFY:
        return None
    return _CLASSIFY[vendor](error)


def kind_of(error: BaseException, using: str) -> ErrorKind:
    """Say what to do about ``error`` of the database ``using``: by its code, then by whether the connection lives."""
    connection = connections[using]
    vendor = _vendor_of(connection)
    known = classify(error, vendor)
    if known is not None:
        return known
    if isinstance(error, (OperationalError, InterfaceError)) and not is_usable(connection):
        is_refused = vendor in {"mysql", "mariadb"} and _mysql_code(error) in codes.MYSQL_REFUSED
        return ErrorKind.UNAVAILABLE if is_refused else ErrorKind.DISCONNECTED
    return ErrorKind.PERMANENT


def rolls_back_transaction(error: BaseException, vendor: str) -> bool:
    """Say whether the server rolled the whole transaction back with ``error``, though its client may go on.

    On MySQL the next statement begins another transaction. A lock wait time-out (1205) does so only where the server
    sets ``innodb_rollback_on_timeout``, which the error does not tell: a savepoint does. On PostgreSQL nothing but a
    rollback is accepted after an error.
    """
    if not isinstance(error, (DatabaseError, InterfaceError)):
        return False
    if vendor == "sqlite":
        return _sqlite_code(error) in codes.SQLITE_ROLLED_BACK
    return vendor in {"mysql", "mariadb"} and _mysql_code(error) in codes.MYSQL_ROLLED_BACK


def is_lock_wait(error: BaseException, vendor: str) -> bool:
    """Say whether ``error`` means that a lock on a row, a table or its definition was not to be had in time."""
    if not isinstance(error, (DatabaseError, InterfaceError)):
        return False
    if vendor == "postgresql":
        return _sqlstate(error) in codes.PG_LOCK_WAIT
    if vendor == "sqlite":
        return _sqlite_code(error) in codes.SQLITE_LOCK_WAIT
    return vendor in {"mysql", "mariadb"} and _mysql_code(error) in codes.MYSQL_LOCK_WAIT


def _table(
    *,
    unavailable: Set[Code] = frozenset(),
    disconnected: Set[Code] = frozenset(),
    conflict: Set[Code] = frozenset(),
    permanent: Set[Code] = frozenset(),
) -> dict[Code, ErrorKind]:
    return (
        dict.fromkeys(unavailable, ErrorKind.UNAVAILABLE)
        | dict.fromkeys(disconnected, ErrorKind.DISCONNECTED)
        | dict.fromkeys(conflict, ErrorKind.CONFLICT)
        | dict.fromkeys(permanent, ErrorKind.PERMANENT)
    )


# --- MySQL and MariaDB ------------------------------------------------------------------------------------------------

_SHARED: Final = _table(
    unavailable=codes.MYSQL_UNAVAILABLE,
    disconnected=codes.MYSQL_DISCONNECTED,
    conflict=codes.MYSQL_CONFLICT,
    permanent=codes.MYSQL_PERMANENT,
)
_MYSQL: Final = _SHARED | _table(
    unavailable=codes.ONLY_MYSQL_UNAVAILABLE,
    disconnected=codes.ONLY_MYSQL_DISCONNECTED,
    permanent=codes.ONLY_MYSQL_PERMANENT,
)
_MARIADB: Final = _SHARED | _table(unavailable=codes.ONLY_MARIADB_UNAVAILABLE)
_READ_ONLY_OPTION: Final = re.compile(r"read[-_]only")
# EIO, ENOMEM, ENFILE, EMFILE, ENOSPC, EROFS and EDQUOT, as the server words them: "(Errcode: 28 "No space left on …")".
_FULL_ERRNO: Final = re.compile(r"\b(?:errno|Errcode|error):? (?:5|12|23|24|28|30|122)\b")


def _classify_mysql(error: BaseException) -> ErrorKind | None:
    return _by_number(error, _MYSQL)


def _classify_mariadb(error: BaseException) -> ErrorKind | None:
    return _by_number(error, _MARIADB)


def _by_number(error: BaseException, table: dict[int, ErrorKind]) -> ErrorKind | None:
    code = _mysql_code(error)
    text = str(error.args[1]) if len(error.args) > 1 else ""
    if code == codes.MYSQL_OPTION_PREVENTS:
        return ErrorKind.UNAVAILABLE if _READ_ONLY_OPTION.search(text) else ErrorKind.PERMANENT
    if code in codes.MYSQL_FILES and _FULL_ERRNO.search(text):
        return ErrorKind.UNAVAILABLE
    return table.get(code)


def _mysql_code(error: BaseException) -> int:
    """Return the number; 0 where there is none, as for a connection that was closed before."""
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else 0


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

_PG: Final = _table(unavailable=codes.PG_UNAVAILABLE, disconnected=codes.PG_DISCONNECTED, conflict=codes.PG_CONFLICT)


def _classify_postgresql(error: BaseException) -> ErrorKind | None:
    state = _sqlstate(error)
    if state is not None:
        return _PG.get(state)
    if not isinstance(error, OperationalError):
        return None
    # The server did not say it, so the client did. A connection that never came about is on its error.
    was_never_open = getattr(error.__cause__, "pgconn", None) is not None
    return ErrorKind.UNAVAILABLE if was_never_open else ErrorKind.DISCONNECTED


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error.__cause__, "sqlstate", None)
    return state if isinstance(state, str) else None


# --- SQLite -----------------------------------------------------------------------------------------------------------

_SQLITE: Final = _table(unavailable=codes.SQLITE_UNAVAILABLE, conflict=codes.SQLITE_CONFLICT)


def _classify_sqlite(error: BaseException) -> ErrorKind | None:
    return _SQLITE.get(_sqlite_code(error))


def _sqlite_code(error: BaseException) -> int:
    """Return the primary result code; 0 where there is none."""
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF
    text = str(error).lower()
    return next((known for sign, known in codes.SQLITE_TEXTS.items() if sign in text), 0)


# --- the connection ---------------------------------------------------------------------------------------------------

_CLASSIFY: Final = {
    "mysql": _classify_mysql,
    "mariadb": _classify_mariadb,
    "postgresql": _classify_postgresql,
    "sqlite": _classify_sqlite,
}


def _vendor_of(connection: BaseDatabaseWrapper) -> str:
    """Return Django's name of the vendor, or ``"mariadb"``, where that is known without asking the server.

    Django keeps what it asked when it first connected; before that no server sent an error with a number in question.
    """
    if connection.vendor == "mysql" and "mysql_server_data" in vars(connection):
        return "mariadb" if getattr(connection, "mysql_is_mariadb", False) else "mysql"
    return connection.vendor


_PG_ABORTED: Final = 3
"""libpq's ``PQTRANS_INERROR``: the transaction is aborted, and its connection is there."""


def is_usable(connection: BaseDatabaseWrapper) -> bool:
    """Ask the database over ``connection`` whether it is there; an aborted transaction refuses to answer, and is."""
    driver = connection.connection
    if driver is None:
        return False
    if connection.vendor == "postgresql" and driver.info.transaction_status == _PG_ABORTED:
        return not driver.closed
    return connection.is_usable()
