"""What to do about a database error is known by its code, and real servers send these codes."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.coordination.database_errors import ErrorKind, classify, is_lock_wait, kind_of, rolls_back_transaction
from tests.threads import Threads
from tests.transactions import (
    OtherTransaction,
    connection_id_of,
    drop_own_connection,
    held_elsewhere,
    kill_own_connection,
    second_connection,
)
from tests.waiting import wait_until

UNAVAILABLE, DISCONNECTED = ErrorKind.UNAVAILABLE, ErrorKind.DISCONNECTED
CONFLICT, PERMANENT = ErrorKind.CONFLICT, ErrorKind.PERMANENT

MYSQL: dict[ErrorKind, dict[int, str]] = {
    UNAVAILABLE: {
        2: "EE_READ",
        3: "EE_WRITE",
        5: "EE_OUTOFMEMORY",
        14: "EE_CANT_CHSIZE",
        20: "EE_DISK_FULL",
        23: "EE_OUT_OF_FILERESOURCES",
        27: "EE_SYNC",
        1021: "DISK_FULL",
        1024: "ERROR_ON_READ",
        1026: "ERROR_ON_WRITE",
        1030: "GET_ERRNO",
        1036: "OPEN_AS_READONLY",
        1037: "OUTOFMEMORY",
        1040: "CON_COUNT_ERROR",
        1041: "OUT_OF_RESOURCES",
        1042: "BAD_HOST_ERROR",
        1043: "HANDSHAKE_ERROR",
        1047: "UNKNOWN_COM_ERROR",
        1053: "SERVER_SHUTDOWN",
        1077: "NORMAL_SHUTDOWN",
        1078: "GOT_SIGNAL",
        1079: "SHUTDOWN_COMPLETE",
        1114: "RECORD_FILE_FULL",
        1129: "HOST_IS_BLOCKED",
        1130: "HOST_NOT_PRIVILEGED",
        1135: "CANT_CREATE_THREAD",
        1203: "TOO_MANY_USER_CONNECTIONS",
        1226: "USER_LIMIT_REACHED",
        1251: "NOT_SUPPORTED_AUTH_MODE",
        1598: "BINLOG_LOGGING_IMPOSSIBLE",
        1637: "TOO_MANY_CONCURRENT_TRXS",
        1820: "MUST_CHANGE_PASSWORD",
        1836: "READ_ONLY_MODE",
        1862: "MUST_CHANGE_PASSWORD_LOGIN",
        1874: "INNODB_READ_ONLY",
        1878: "TEMP_FILE_WRITE_FAILURE",
        2001: "SOCKET_CREATE_ERROR",
        2002: "CONNECTION_ERROR",
        2003: "CONN_HOST_ERROR",
        2004: "IPSOCK_ERROR",
        2005: "UNKNOWN_HOST",
        2007: "VERSION_ERROR",
        2012: "SERVER_HANDSHAKE_ERR",
        2049: "SECURE_AUTH",
        2059: "AUTH_PLUGIN_CANNOT_LOAD",
        2061: "AUTH_PLUGIN_ERR",
        3015: "ENGINE_OUT_OF_MEMORY",
        3019: "INNODB_UNDO_LOG_FULL",
        3032: "SERVER_OFFLINE_MODE",
        3118: "ACCOUNT_HAS_BEEN_LOCKED",
        3159: "SECURE_TRANSPORT_REQUIRED",
        3781: "GR_HOLD_WAIT_TIMEOUT",
        3782: "GR_HOLD_KILLED",
        3783: "GR_HOLD_MEMBER_STATUS_ERROR",
        3796: "GRP_TRX_CONSISTENCY_NOT_ALLOWED",
        3797: "GRP_TRX_CONSISTENCY_BEFORE",
        3798: "GRP_TRX_CONSISTENCY_AFTER_ON_TRX_BEGIN",
        3799: "GRP_TRX_CONSISTENCY_BEGIN_NOT_ALLOWED",
        3884: "NO_SESSION_TEMP",
        3950: "DA_OOM",
        3985: "MDL_OUT_OF_RESOURCES",
        3989: "SCHEMA_READ_ONLY",
    },
    DISCONNECTED: {
        1152: "ABORTING_CONNECTION",
        1154: "NET_READ_ERROR_FROM_PIPE",
        1155: "NET_FCNTL_ERROR",
        1156: "NET_PACKETS_OUT_OF_ORDER",
        1157: "NET_UNCOMPRESS_ERROR",
        1158: "NET_READ_ERROR",
        1159: "NET_READ_INTERRUPTED",
        1160: "NET_ERROR_ON_WRITE",
        1161: "NET_WRITE_INTERRUPTED",
        1184: "NEW_ABORTING_CONNECTION",
        1927: "CONNECTION_KILLED",
        2006: "SERVER_GONE_ERROR",
        2013: "SERVER_LOST",
        2026: "SSL_CONNECTION_ERROR",
        2027: "MALFORMED_PACKET",
        2055: "SERVER_LOST_EXTENDED",
        3169: "SESSION_WAS_KILLED",
    },
    CONFLICT: {
        1020: "CHECKREAD",
        1028: "FILSORT_ABORT",
        1180: "ERROR_DURING_COMMIT",
        1181: "ERROR_DURING_ROLLBACK",
        1205: "LOCK_WAIT_TIMEOUT",
        1206: "LOCK_TABLE_FULL",
        1213: "LOCK_DEADLOCK",
        1297: "GET_TEMPORARY_ERRMSG",
        1317: "QUERY_INTERRUPTED",
        1402: "XA_RBROLLBACK",
        1412: "TABLE_DEF_CHANGED",
        1613: "XA_RBTIMEOUT",
        1614: "XA_RBDEADLOCK",
        1615: "NEED_REPREPARE",
        1622: "WARN_ENGINE_TRANSACTION_ROLLBACK",
        1689: "LOCK_ABORTED",
        1964: "PRIOR_COMMIT_FAILED",
        1969: "STATEMENT_TIMEOUT",
        3024: "QUERY_TIMEOUT",
        3058: "USER_LOCK_DEADLOCK",
        3100: "RUN_HOOK_ERROR",
        3101: "TRANSACTION_ROLLBACK_DURING_COMMIT",
        3132: "LOCKING_SERVICE_DEADLOCK",
        3133: "LOCKING_SERVICE_TIMEOUT",
        3197: "XA_RETRY",
        3572: "LOCK_NOWAIT",
    },
    PERMANENT: {
        1153: "NET_PACKET_TOO_LARGE",
        2020: "NET_PACKET_TOO_LARGE",
    },
}
MYSQL_ROLLED_BACK = {1020, 1180, 1181, 1206, 1213, 1402, 1613, 1614, 1622, 1964, 3100, 3101}
MYSQL_LOCK_WAIT = {1205, 1689, 3133, 3572}

CLASHES = {
    4031: (DISCONNECTED, None),
    4081: (UNAVAILABLE, None),
    4082: (PERMANENT, None),
    4094: (UNAVAILABLE, None),
    4139: (None, UNAVAILABLE),
    4150: (None, UNAVAILABLE),
    4151: (None, UNAVAILABLE),
}
"""Numbers that mean one thing to MySQL and another to MariaDB."""

MYSQL_TEXTS = [
    (1, "Can't create/write to file '/tmp/x' (OS errno 28 - No space left on device)", UNAVAILABLE),
    (1, "Can't create/write to file '/tmp/x' (Errcode: 24 \"Too many open files\")", UNAVAILABLE),
    (1, "Can't create/write to file '/etc/x' (OS errno 13 - Permission denied)", None),
    (1004, "Can't create file '/tmp/#sql' (errno: 28 - No space left on device)", UNAVAILABLE),
    (1016, "Can't open file: 't' (errno: 24 - Too many open files)", UNAVAILABLE),
    (1016, "Can't open file: 't' (errno: 1 - Operation not permitted)", None),
    (1180, 'Got error 28 "No space left on device" during COMMIT', UNAVAILABLE),
    (1180, "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT", CONFLICT),
    (1290, "The MariaDB server is running with the --read-only option so it cannot", UNAVAILABLE),
    (1290, "The MySQL server is running with the --super-read-only option so it", UNAVAILABLE),
    (1290, "The MySQL server is running with the --innodb_read_only option", UNAVAILABLE),
    (1290, "The MySQL server is running with the --secure-file-priv option", PERMANENT),
]

POSTGRESQL: dict[ErrorKind, dict[str, str]] = {
    UNAVAILABLE: {
        "08001": "SqlclientUnableToEstablishSqlconnection",
        "08004": "SqlserverRejectedEstablishmentOfSqlconnection",
        "25006": "ReadOnlySqlTransaction",
        "53000": "InsufficientResources",
        "53100": "DiskFull",
        "53200": "OutOfMemory",
        "53300": "TooManyConnections",
        "57P02": "CrashShutdown",
        "57P03": "CannotConnectNow",
        "57P04": "DatabaseDropped",
        "58000": "SystemError",
        "58030": "IoError",
        "58P01": "UndefinedFile",
        "58P02": "DuplicateFile",
        "F0000": "ConfigFileError",
        "F0001": "LockFileExists",
    },
    DISCONNECTED: {
        "08000": "ConnectionException",
        "08003": "ConnectionDoesNotExist",
        "08006": "ConnectionFailure",
        "08007": "TransactionResolutionUnknown",
        "08P01": "ProtocolViolation",
        "25P03": "IdleInTransactionSessionTimeout",
        "25P04": "TransactionTimeout",
        "57P01": "AdminShutdown",
        "57P05": "IdleSessionTimeout",
    },
    CONFLICT: {
        "40000": "TransactionRollback",
        "40001": "SerializationFailure",
        "40003": "StatementCompletionUnknown",
        "40P01": "DeadlockDetected",
        "55006": "ObjectInUse",
        "55P03": "LockNotAvailable",
        "57014": "QueryCanceled",
        "72000": "SnapshotTooOld",
    },
}

SQLITE: dict[ErrorKind, tuple[str, ...]] = {
    UNAVAILABLE: ("PERM", "NOMEM", "READONLY", "IOERR", "FULL", "CANTOPEN", "IOERR_WRITE", "READONLY_DBMOVED"),
    CONFLICT: ("BUSY", "LOCKED", "INTERRUPT", "PROTOCOL", "SCHEMA", "BUSY_SNAPSHOT", "LOCKED_SHAREDCACHE"),
}
SQLITE_TEXTS = [
    ("database is locked", CONFLICT),
    ("database table is locked", CONFLICT),
    ("interrupted", CONFLICT),
    ("disk I/O error", UNAVAILABLE),
    ("unable to open database file", UNAVAILABLE),
    ("attempt to write a readonly database", UNAVAILABLE),
    ("database or disk is full", UNAVAILABLE),
    ("no such table: x", None),
]


def from_postgres(state: str | None, *, kind: type[Exception] = OperationalError, **more: Any) -> Exception:
    """Return an error as Django makes it from one of PostgreSQL's."""
    error = kind("text")
    error.__cause__ = type("Cause", (Exception,), {"sqlstate": state, **more})()
    return error


def from_sqlite(name: str) -> Exception:
    """Return an error as Django makes it from one of SQLite's."""
    error = OperationalError("text")
    error.__cause__ = type("Cause", (Exception,), {"sqlite_errorcode": getattr(sqlite3, f"SQLITE_{name}")})()
    return error


def each(table: dict[ErrorKind, Any]) -> list[Any]:
    return [pytest.param(code, kind, id=f"{code}") for kind, codes in table.items() for code in codes]


@pytest.mark.parametrize("vendor", ["mysql", "mariadb"])
@pytest.mark.parametrize(("code", "kind"), each(MYSQL))
def test_number_of_mysql_says_what_to_do(vendor: str, code: int, kind: ErrorKind) -> None:
    error = OperationalError(code, "text")

    assert classify(error, vendor) is kind
    assert rolls_back_transaction(error, vendor) is (code in MYSQL_ROLLED_BACK)
    assert is_lock_wait(error, vendor) is (code in MYSQL_LOCK_WAIT)


def test_numbers_are_those_of_the_drivers_lists() -> None:
    """Neither list is complete: what the driver names must be named the same here, and most must be named."""
    lists = [pytest.importorskip(f"MySQLdb.constants.{name}") for name in ("ER", "CR")]
    names = {number: name for codes in MYSQL.values() for number, name in codes.items()}
    known = {
        number: {n for m in lists for n, v in vars(m).items() if v == number and not n.startswith("UNUSED")}
        for number in names
    }

    assert {n: (names[n], found) for n, found in known.items() if found and names[n] not in found} == {}
    assert sum(bool(found) for found in known.values()) > 60


@pytest.mark.parametrize(("code", "kinds"), CLASHES.items())
def test_number_with_two_meanings_is_read_as_its_server_means_it(
    code: int, kinds: tuple[ErrorKind | None, ErrorKind | None]
) -> None:
    error = OperationalError(code, "text")

    assert (classify(error, "mysql"), classify(error, "mariadb")) == kinds


@pytest.mark.parametrize(
    ("database_alias", "kind"), [("mariadb", PERMANENT), ("mysql", DISCONNECTED)], indirect=["database_alias"]
)
def test_server_is_told_from_the_other_by_what_it_said_of_itself(alias: str, kind: ErrorKind) -> None:
    connections[alias].ensure_connection()

    assert kind_of(OperationalError(4031, "text"), alias) is kind


@pytest.mark.parametrize(("code", "text", "kind"), MYSQL_TEXTS)
def test_number_of_many_reasons_is_read_with_its_text(code: int, text: str, kind: ErrorKind | None) -> None:
    assert classify(OperationalError(code, text), "mysql") is kind


@pytest.mark.parametrize(("state", "kind"), each(POSTGRESQL))
def test_state_of_postgresql_says_what_to_do(state: str, kind: ErrorKind) -> None:
    error = from_postgres(state)

    assert classify(error, "postgresql") is kind
    assert rolls_back_transaction(error, "postgresql") is False
    assert is_lock_wait(error, "postgresql") is (state == "55P03")


def test_states_are_those_of_the_drivers_list() -> None:
    errors = pytest.importorskip("psycopg.errors")
    names = {state: name for codes in POSTGRESQL.values() for state, name in codes.items()}
    known = {kind.sqlstate: kind.__name__ for kind in vars(errors).values() if getattr(kind, "sqlstate", None)}

    assert {state: known.get(state, name) for state, name in names.items()} == names


@pytest.mark.parametrize("state", ["22001", "23505", "25P02", "28P01", "40002", "42P01", "53400", "54000", "XX001"])
def test_other_states_of_postgresql_are_the_statements_own(state: str) -> None:
    assert classify(from_postgres(state, kind=DatabaseError), "postgresql") is None


def test_what_postgresql_did_not_say_itself_is_said_of_the_connection() -> None:
    assert classify(from_postgres(None), "postgresql") is DISCONNECTED
    assert classify(OperationalError("server closed the connection unexpectedly"), "postgresql") is DISCONNECTED
    assert classify(from_postgres(None, pgconn=object()), "postgresql") is UNAVAILABLE, "it was never opened"
    assert classify(from_postgres(None, kind=InterfaceError), "postgresql") is None


@pytest.mark.parametrize(("name", "kind"), each(SQLITE))
def test_result_code_of_sqlite_says_what_to_do(name: str, kind: ErrorKind) -> None:
    error, primary = from_sqlite(name), name.partition("_")[0]

    assert classify(error, "sqlite") is kind
    assert rolls_back_transaction(error, "sqlite") is (primary in {"FULL", "IOERR", "NOMEM", "INTERRUPT"})
    assert is_lock_wait(error, "sqlite") is (primary in {"BUSY", "LOCKED"})


@pytest.mark.parametrize(("text", "kind"), SQLITE_TEXTS)
def test_text_of_sqlite_stands_in_for_a_lost_code(text: str, kind: ErrorKind | None) -> None:
    assert classify(OperationalError(text), "sqlite") is kind


@pytest.mark.parametrize("vendor", ["mysql", "mariadb", "postgresql", "sqlite", "oracle"])
def test_what_is_no_error_of_a_database_says_nothing_of_it(vendor: str) -> None:
    error = LookupError(1205, "database is locked")

    assert classify(error, vendor) is None
    assert not rolls_back_transaction(error, vendor)
    assert not is_lock_wait(error, vendor)


@pytest.mark.parametrize(
    ("database_alias", "error", "kind"),
    [
        ("mariadb", InterfaceError(0, ""), DISCONNECTED),
        ("mariadb", OperationalError(1045, "Access denied"), UNAVAILABLE),
        ("mariadb", OperationalError(1049, "Unknown database"), UNAVAILABLE),
        ("mariadb", IntegrityError(1062, "Duplicate entry"), PERMANENT),
        ("mariadb", ProgrammingError(1146, "Table doesn't exist"), PERMANENT),
        ("mariadb", OperationalError(1153, "Got a packet bigger than 'max_allowed_packet' bytes"), PERMANENT),
        ("mariadb", LookupError("no database error"), PERMANENT),
        ("mariadb", OperationalError(), DISCONNECTED),
        ("postgres", InterfaceError("the connection is closed"), DISCONNECTED),
        ("postgres", from_postgres("23505", kind=IntegrityError), PERMANENT),
        ("postgres", from_postgres("42P01", kind=ProgrammingError), PERMANENT),
        ("default", IntegrityError("UNIQUE constraint failed: x.y"), PERMANENT),
        ("default", InterfaceError("connection already closed"), DISCONNECTED),
    ],
    indirect=["database_alias"],
    ids=str,
)
def test_connection_that_is_gone_explains_what_the_code_does_not(alias: str, error: Exception, kind: ErrorKind) -> None:
    connections[alias].close()

    assert kind_of(error, alias) is kind


@pytest.mark.parametrize(
    ("database_alias", "error"),
    [
        ("mariadb", OperationalError(1045, "Access denied for user (using password: YES)")),
        ("mariadb", OperationalError(1049, "Unknown database 'elsewhere'")),
        ("mysql", OperationalError(1366, "Incorrect string value")),
        ("postgres", InterfaceError("the cursor is closed")),
        ("default", InterfaceError("bad parameter or other API misuse")),
    ],
    indirect=["database_alias"],
    ids=str,
)
def test_unknown_error_on_a_connection_that_lives_is_the_statements_own(alias: str, error: Exception) -> None:
    connections[alias].ensure_connection()

    assert kind_of(error, alias) is PERMANENT


# --- what the servers really send -------------------------------------------------------------------------------------

SERVERS = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
MYSQLS = pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)


def fails(alias: str, work: Callable[[], Any]) -> Exception:
    """Return the error that ``work`` ends in; leave the connection as a failure leaves it."""
    with pytest.raises((DatabaseError, InterfaceError)) as caught:
        work()
    return caught.value


def execute(alias: str, sql: str, parameters: list[Any] | None = None) -> list[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def row(alias: str, name: str) -> int:
    return int(
        AgentStateSnapshotRecord.objects.using(alias).create(conversation_id=name, user_id=1, snapshot_json="{}").pk
    )


def lock(alias: str, pk: int, *, nowait: bool = False) -> None:
    list(AgentStateSnapshotRecord.objects.using(alias).select_for_update(nowait=nowait).filter(pk=pk))


def exists(alias: str, name: str) -> bool:
    return AgentStateSnapshotRecord.objects.using(alias).filter(conversation_id=name).exists()


@contextmanager
def setting(alias: str, **statements: str) -> Iterator[None]:
    """Have this session work under a setting, and end it afterwards."""
    execute(alias, statements[connections[alias].vendor])
    try:
        yield
    finally:
        connections[alias].close()


IMPATIENT = {
    "mysql": "SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1",
    "postgresql": "SET lock_timeout = '20ms'",
}


@SERVERS
@pytest.mark.parametrize("nowait", [False, True], ids=["in time", "at once"])
def test_row_that_another_holds_is_a_conflict_that_leaves_the_transaction(alias: str, nowait: bool) -> None:
    held = row(alias, "held")
    vendor = connections[alias].vendor
    with setting(alias, **IMPATIENT), held_elsewhere(alias, lambda: lock(alias, held)):
        with transaction.atomic(using=alias):
            row(alias, "before")
            savepoint = transaction.savepoint(using=alias)
            error = fails(alias, lambda: lock(alias, held, nowait=nowait))
            transaction.savepoint_rollback(savepoint, using=alias)

        assert kind_of(error, alias) is CONFLICT
        assert is_lock_wait(error, vendor)
        assert not rolls_back_transaction(error, vendor)
        assert exists(alias, "before"), "what was done before is still there"


@SERVERS
def test_table_whose_definition_another_holds_is_a_lock_wait(alias: str) -> None:
    table = AgentStateSnapshotRecord._meta.db_table
    wanted = {
        "mysql": f"ALTER TABLE {table} COMMENT = 'not to be had'",
        "postgresql": f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
    }[connections[alias].vendor]
    with (
        setting(alias, **IMPATIENT),
        held_elsewhere(alias, lambda: exists(alias, "anything")),
        transaction.atomic(using=alias),
    ):
        error = fails(alias, lambda: execute(alias, wanted))
        transaction.set_rollback(True, using=alias)

    assert kind_of(error, alias) is CONFLICT
    assert is_lock_wait(error, connections[alias].vendor)


@SERVERS
def test_lost_deadlock_is_a_conflict_that_takes_the_transaction_along(alias: str) -> None:
    mine, theirs = row(alias, "mine"), row(alias, "theirs")

    def be_heavy() -> None:
        for number in range(100):
            row(alias, f"heavy-{number}")
        lock(alias, theirs)
        lock(alias, mine)

    other = OtherTransaction(alias, be_heavy)
    errors: list[BaseException] = []
    with transaction.atomic(using=alias):
        row(alias, "before")
        lock(alias, mine)
        other.start()
        wait_until(other.is_waiting_for_a_lock, timeout=30)
        try:
            lock(alias, theirs)
        except OperationalError as error:
            errors.append(error)
        was_rolled_back = bool(errors) and connections[alias].vendor == "mysql" and not exists(alias, "before")
        transaction.set_rollback(True, using=alias)
    try:
        other.result()
    except OperationalError as error:
        errors.append(error)

    [error] = errors
    assert kind_of(error, alias) is CONFLICT
    assert not is_lock_wait(error, connections[alias].vendor)
    assert rolls_back_transaction(error, connections[alias].vendor) is was_rolled_back


@pytest.mark.parametrize("database_alias", ["mariadb"], indirect=True)
def test_changed_record_is_a_conflict_that_takes_the_transaction_along(alias: str) -> None:
    if not execute(alias, "SHOW VARIABLES LIKE 'innodb_snapshot_isolation'"):
        pytest.skip("this MariaDB has no innodb_snapshot_isolation")
    changed = row(alias, "changed")
    with setting(alias, mysql="SET SESSION innodb_snapshot_isolation = ON"):
        execute(alias, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with transaction.atomic(using=alias):
            row(alias, "before")
            exists(alias, "anything")
            other = second_connection(alias)
            with other.cursor() as cursor:
                cursor.execute(
                    f"UPDATE {AgentStateSnapshotRecord._meta.db_table} SET user_id = 2 WHERE id = %s", [changed]
                )
            other.close()
            error = fails(alias, lambda: lock(alias, changed))
            was_rolled_back = not exists(alias, "before")
            transaction.set_rollback(True, using=alias)

        assert error.args[0] == 1020
        assert kind_of(error, alias) is CONFLICT
        assert rolls_back_transaction(error, "mysql")
        assert was_rolled_back


LONG = {
    "mysql": "SELECT COUNT(*) FROM information_schema.columns a, information_schema.columns b, "
    "information_schema.columns c WHERE a.column_name <> b.column_name AND b.column_name <> c.column_name",
    "postgresql": "SELECT PG_SLEEP(30)",
}


@SERVERS
def test_statement_that_took_too_long_is_a_conflict(alias: str) -> None:
    connections[alias].ensure_connection()
    limit = "max_statement_time = 0.1" if alias == "mariadb" else "max_execution_time = 100"
    with setting(alias, mysql=f"SET SESSION {limit}", postgresql="SET statement_timeout = '50ms'"):
        error = fails(alias, lambda: execute(alias, LONG[connections[alias].vendor]))

    assert kind_of(error, alias) is CONFLICT
    assert not is_lock_wait(error, connections[alias].vendor)


@SERVERS
def test_statement_that_somebody_ends_is_a_conflict(alias: str) -> None:
    vendor, own_id = connections[alias].vendor, connection_id_of(alias)
    interrupt = {"mysql": "KILL QUERY %s", "postgresql": "SELECT PG_CANCEL_BACKEND(%s)"}[vendor]
    ended = threading.Event()

    def interrupt_again_and_again() -> None:
        while not ended.wait(0.05):
            execute(alias, interrupt, [own_id])

    threads = Threads()
    threads.start(interrupt_again_and_again)
    try:
        error = fails(alias, lambda: execute(alias, LONG[vendor]))
    finally:
        ended.set()
    connections[alias].close()

    wait_until(threads.are_all_over)
    threads.check_no_errors()
    assert kind_of(error, alias) is CONFLICT


@pytest.mark.parametrize(
    ("database_alias", "breaks_it"),
    [
        ("mariadb", kill_own_connection),
        ("mysql", kill_own_connection),
        ("postgres", kill_own_connection),
        ("postgres", drop_own_connection),
    ],
    indirect=["database_alias"],
)
def test_connection_that_ended_says_so_and_not_why(alias: str, breaks_it: Callable[[str], None]) -> None:
    connections[alias].ensure_connection()
    breaks_it(alias)
    first = fails(alias, lambda: execute(alias, "SELECT 1"))
    second = fails(alias, lambda: execute(alias, "SELECT 1"))

    assert [kind_of(error, alias) for error in (first, second)] == [DISCONNECTED, DISCONNECTED]


@SERVERS
def test_session_that_idled_for_too_long_is_disconnected(alias: str) -> None:
    idle = {
        "mysql": "SET SESSION wait_timeout = 1",
        "postgresql": "SET idle_in_transaction_session_timeout = '20ms'",
    }
    alive = {
        "mysql": "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s",
        "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = %s",
    }[connections[alias].vendor]
    own_id = connection_id_of(alias)
    other = second_connection(alias)

    def is_gone() -> bool:
        with other.cursor() as cursor:
            cursor.execute(alive, [own_id])
            return not cursor.fetchone()[0]

    try:
        with setting(alias, **idle):
            connections[alias].set_autocommit(False)
            execute(alias, "SELECT 1")
            wait_until(is_gone)
            error = fails(alias, lambda: execute(alias, "SELECT 1"))
            assert kind_of(error, alias) is DISCONNECTED
    finally:
        other.close()


@MYSQLS
def test_statement_above_the_packets_bound_is_the_statements_own_or_ends_the_connection(alias: str) -> None:
    """Which of the two the client sees depends on whether it was still sending when the server closed the line."""
    [(bound,)] = execute(alias, "SELECT @@max_allowed_packet")

    error = fails(alias, lambda: execute(alias, "SELECT LENGTH(%s)", ["x" * (int(bound) + 1000)]))

    assert kind_of(error, alias) in {PERMANENT, DISCONNECTED}
    assert error.args[0] in {1153, 2006, 2013, 2020}
    connections[alias].close()


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "default"], indirect=True)
def test_full_table_is_unavailable(alias: str) -> None:
    full = {"mysql": "SET SESSION max_heap_table_size = 16384", "sqlite": "PRAGMA max_page_count = 1"}
    with setting(alias, **full), transaction.atomic(using=alias):
        if connections[alias].vendor == "mysql":
            execute(alias, "CREATE TEMPORARY TABLE filled (text CHAR(255)) ENGINE = MEMORY")
            error = fails(alias, lambda: [execute(alias, "INSERT INTO filled VALUES ('x')") for _ in range(1000)])
        else:
            error = fails(alias, lambda: execute(alias, "CREATE TABLE filled AS SELECT ZEROBLOB(50000000) AS text"))
        transaction.set_rollback(True, using=alias)

    assert kind_of(error, alias) is UNAVAILABLE


@pytest.mark.parametrize("database_alias", ["postgres", "default"], indirect=True)
def test_database_that_is_read_only_is_unavailable(alias: str) -> None:
    with setting(alias, postgresql="SET default_transaction_read_only = on", sqlite="PRAGMA query_only = ON"):
        error = fails(alias, lambda: row(alias, "not to be written"))

        assert kind_of(error, alias) is UNAVAILABLE


@MYSQLS
def test_transaction_that_asked_to_be_read_only_gets_what_it_asked_for(alias: str) -> None:
    with setting(alias, mysql="SET SESSION TRANSACTION READ ONLY"):
        error = fails(alias, lambda: row(alias, "not to be written"))

        assert error.args[0] == 1792
        assert kind_of(error, alias) is PERMANENT


@SERVERS
def test_server_that_lets_nobody_in_is_unavailable(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connections[alias].close()
    with monkeypatch.context() as patched:
        patched.setitem(connections[alias].settings_dict, "PASSWORD", "wrong")
        error = fails(alias, connections[alias].ensure_connection)

    assert kind_of(error, alias) is UNAVAILABLE


@SERVERS
def test_server_that_does_not_answer_is_unavailable(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connections[alias].close()
    with socket.socket() as nobody, monkeypatch.context() as patched:
        nobody.bind(("127.0.0.1", 0))
        patched.setitem(connections[alias].settings_dict, "PORT", str(nobody.getsockname()[1]))
        error = fails(alias, connections[alias].ensure_connection)

    assert kind_of(error, alias) is UNAVAILABLE


def test_statement_that_is_wrong_is_permanent_while_the_database_is_there(alias: str) -> None:
    assert kind_of(fails(alias, lambda: execute(alias, "SELECT nothing FROM nowhere")), alias) is PERMANENT


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_file_that_another_writes_is_a_lock_wait(alias: str) -> None:
    other = second_connection(alias)
    with setting(alias, sqlite="PRAGMA busy_timeout = 20"):
        try:
            with other.cursor() as cursor:
                cursor.execute("BEGIN IMMEDIATE")
            error = fails(alias, lambda: row(alias, "not to be written"))
            assert kind_of(error, alias) is CONFLICT
            assert is_lock_wait(error, "sqlite")
        finally:
            other.close()


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_statement_of_sqlite_that_is_interrupted_is_a_conflict(alias: str) -> None:
    connections[alias].ensure_connection()
    connections[alias].connection.set_progress_handler(lambda: 1, 100)
    error = fails(
        alias,
        lambda: execute(
            alias, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
        ),
    )
    connections[alias].close()

    assert kind_of(error, alias) is CONFLICT


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_file_that_cannot_be_opened_is_unavailable(alias: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connections[alias].close()
    with monkeypatch.context() as patched:
        patched.setitem(connections[alias].settings_dict, "NAME", str(tmp_path / "nowhere" / "db.sqlite3"))
        error = fails(alias, connections[alias].ensure_connection)

    assert kind_of(error, alias) is UNAVAILABLE
