"""What the codes of database errors mean: numbers and symbols of the vendors' lists, by what to do about them.

What is in no set is the statement's own.
"""

from __future__ import annotations

from typing import Final

# --- MySQL and MariaDB ------------------------------------------------------------------------------------------------
# https://dev.mysql.com/doc/mysql-errors/9.7/en/, https://mariadb.com/docs/server/reference/error-codes. Below 1000:
# files of the server; 1xxx and from 3000: the server; 2xxx: the client library.

MYSQL_UNAVAILABLE: Final = {
    # down, starting or shutting down
    1053,  # ER_SERVER_SHUTDOWN
    1077,  # ER_NORMAL_SHUTDOWN
    1078,  # ER_GOT_SIGNAL
    1079,  # ER_SHUTDOWN_COMPLETE
    2001,  # CR_SOCKET_CREATE_ERROR
    2002,  # CR_CONNECTION_ERROR
    2003,  # CR_CONN_HOST_ERROR
    2004,  # CR_IPSOCK_ERROR
    2005,  # CR_UNKNOWN_HOST
    2007,  # CR_VERSION_ERROR
    2012,  # CR_SERVER_HANDSHAKE_ERR
    # lets nobody in
    1040,  # ER_CON_COUNT_ERROR
    1042,  # ER_BAD_HOST_ERROR
    1043,  # ER_HANDSHAKE_ERROR
    1129,  # ER_HOST_IS_BLOCKED
    1130,  # ER_HOST_NOT_PRIVILEGED
    1203,  # ER_TOO_MANY_USER_CONNECTIONS
    1226,  # ER_USER_LIMIT_REACHED
    1251,  # ER_NOT_SUPPORTED_AUTH_MODE
    1820,  # ER_MUST_CHANGE_PASSWORD
    1862,  # ER_MUST_CHANGE_PASSWORD_LOGIN
    2049,  # CR_SECURE_AUTH
    2059,  # CR_AUTH_PLUGIN_CANNOT_LOAD
    2061,  # CR_AUTH_PLUGIN_ERR
    3032,  # ER_SERVER_OFFLINE_MODE
    3118,  # ER_ACCOUNT_HAS_BEEN_LOCKED
    3159,  # ER_SECURE_TRANSPORT_REQUIRED
    # full, or its files cannot be written
    2,  # EE_READ
    3,  # EE_WRITE
    14,  # EE_CANT_CHSIZE
    20,  # EE_DISK_FULL
    23,  # EE_OUT_OF_FILERESOURCES
    27,  # EE_SYNC
    1021,  # ER_DISK_FULL
    1024,  # ER_ERROR_ON_READ
    1026,  # ER_ERROR_ON_WRITE
    1030,  # ER_GET_ERRNO: what the storage engine met with
    1114,  # ER_RECORD_FILE_FULL
    1598,  # ER_BINLOG_LOGGING_IMPOSSIBLE
    1637,  # ER_TOO_MANY_CONCURRENT_TRXS: no undo slot is free
    1878,  # ER_TEMP_FILE_WRITE_FAILURE
    3019,  # ER_INNODB_UNDO_LOG_FULL
    3884,  # ER_NO_SESSION_TEMP
    # out of memory or threads
    5,  # EE_OUTOFMEMORY
    1037,  # ER_OUTOFMEMORY
    1041,  # ER_OUT_OF_RESOURCES
    1135,  # ER_CANT_CREATE_THREAD
    3015,  # ER_ENGINE_OUT_OF_MEMORY
    3950,  # ER_DA_OOM
    3985,  # ER_MDL_OUT_OF_RESOURCES
    # read-only; 1290 says it of other options too, and 1792, of a transaction that asked for READ ONLY, is its own
    1036,  # ER_OPEN_AS_READONLY
    1836,  # ER_READ_ONLY_MODE
    1874,  # ER_INNODB_READ_ONLY
    3989,  # ER_SCHEMA_READ_ONLY
    # a member that is not of the cluster now
    1047,  # ER_UNKNOWN_COM_ERROR: "WSREP has not yet prepared node for application use"
    3781,  # ER_GR_HOLD_WAIT_TIMEOUT
    3782,  # ER_GR_HOLD_KILLED
    3783,  # ER_GR_HOLD_MEMBER_STATUS_ERROR
    3796,  # ER_GRP_TRX_CONSISTENCY_NOT_ALLOWED
    3797,  # ER_GRP_TRX_CONSISTENCY_BEFORE
    3798,  # ER_GRP_TRX_CONSISTENCY_AFTER_ON_TRX_BEGIN
    3799,  # ER_GRP_TRX_CONSISTENCY_BEGIN_NOT_ALLOWED
}
MYSQL_DISCONNECTED: Final = {
    1152,  # ER_ABORTING_CONNECTION
    1154,  # ER_NET_READ_ERROR_FROM_PIPE
    1155,  # ER_NET_FCNTL_ERROR
    1156,  # ER_NET_PACKETS_OUT_OF_ORDER
    1157,  # ER_NET_UNCOMPRESS_ERROR
    1158,  # ER_NET_READ_ERROR
    1159,  # ER_NET_READ_INTERRUPTED
    1160,  # ER_NET_ERROR_ON_WRITE
    1161,  # ER_NET_WRITE_INTERRUPTED
    1184,  # ER_NEW_ABORTING_CONNECTION
    1927,  # ER_CONNECTION_KILLED
    2006,  # CR_SERVER_GONE_ERROR
    2013,  # CR_SERVER_LOST
    2026,  # CR_SSL_CONNECTION_ERROR: while it is opened, and later
    2027,  # CR_MALFORMED_PACKET
    2055,  # CR_SERVER_LOST_EXTENDED
    3169,  # ER_SESSION_WAS_KILLED
}
# The statement's own, though the server ends the connection with it, so that asking the connection would mislead.
MYSQL_PERMANENT: Final = {
    1153,  # ER_NET_PACKET_TOO_LARGE
    2020,  # CR_NET_PACKET_TOO_LARGE
}
MYSQL_LOCK_WAIT: Final = {
    1205,  # ER_LOCK_WAIT_TIMEOUT: of rows, and of a table's definition; on MariaDB of NOWAIT too
    1689,  # ER_LOCK_ABORTED
    3133,  # ER_LOCKING_SERVICE_TIMEOUT
    3572,  # ER_LOCK_NOWAIT
}
# https://dev.mysql.com/doc/refman/9.7/en/innodb-error-handling.html names the deadlock; InnoDB's source does the same
# for a full lock table, and MariaDB for a changed record (MDEV-35235). Where a commit fails, the transaction is over.
MYSQL_ROLLED_BACK: Final = {
    1020,  # ER_CHECKREAD: MariaDB's innodb_snapshot_isolation
    1180,  # ER_ERROR_DURING_COMMIT
    1181,  # ER_ERROR_DURING_ROLLBACK: how Group Replication and Galera say it where they end a transaction early
    1206,  # ER_LOCK_TABLE_FULL
    1213,  # ER_LOCK_DEADLOCK: also of Galera's certification
    1402,  # ER_XA_RBROLLBACK
    1613,  # ER_XA_RBTIMEOUT
    1614,  # ER_XA_RBDEADLOCK
    1622,  # ER_WARN_ENGINE_TRANSACTION_ROLLBACK
    1964,  # ER_PRIOR_COMMIT_FAILED
    3100,  # ER_RUN_HOOK_ERROR: Group Replication; of too large a transaction too, which must not be waited for
    3101,  # ER_TRANSACTION_ROLLBACK_DURING_COMMIT: its certification
}
MYSQL_CONFLICT: Final = {
    *MYSQL_LOCK_WAIT,
    *MYSQL_ROLLED_BACK,
    1028,  # ER_FILSORT_ABORT: how MariaDB says that a sort was interrupted
    1297,  # ER_GET_TEMPORARY_ERRMSG: NDB
    1317,  # ER_QUERY_INTERRUPTED
    1412,  # ER_TABLE_DEF_CHANGED
    1615,  # ER_NEED_REPREPARE
    1969,  # ER_STATEMENT_TIMEOUT: MariaDB's max_statement_time
    3024,  # ER_QUERY_TIMEOUT: MySQL's max_execution_time
    3058,  # ER_USER_LOCK_DEADLOCK
    3132,  # ER_LOCKING_SERVICE_DEADLOCK
    3197,  # ER_XA_RETRY
}
# The same number is another error to the other server.
ONLY_MYSQL_UNAVAILABLE: Final = {
    4081,  # ER_DA_GLOBAL_CONN_LIMIT: memory of all; MariaDB: ER_UNKNOWN_STRUCTURED_VARIABLE
    4094,  # ER_OPERATION_NOT_ALLOWED_WHILE_PRIMARY_CHANGE_IS_RUNNING; MariaDB: ER_SP_STACK_TRACE
}
ONLY_MYSQL_DISCONNECTED: Final = {
    4031,  # ER_CLIENT_INTERACTION_TIMEOUT; MariaDB: ER_REFERENCED_TRG_DOES_NOT_EXIST
}
ONLY_MYSQL_PERMANENT: Final = {
    4082,  # ER_DA_CONN_LIMIT: memory of this one, which is closed; MariaDB: ER_ROW_VARIABLE_DOES_NOT_HAVE_FIELD
}
ONLY_MARIADB_UNAVAILABLE: Final = {
    4139,  # ER_INDEX_FILE_FULL; MySQL: ER_BULK_LOAD_DATA_FAILED
    4150,  # ER_USER_IS_BLOCKED; MySQL: ER_BULK_PARSER_UNEXPECTED_CHAR_AFTER_COLUMN_TERMINATOR
    4151,  # ER_ACCOUNT_HAS_BEEN_LOCKED; MySQL: ER_BULK_PARSER_INCOMPLETE_ESCAPE_SEQUENCE
}
# Of a connection that cannot be opened, and of a statement that asks for what is not its own: the connection tells.
MYSQL_REFUSED: Final = {
    1044,  # ER_DBACCESS_DENIED_ERROR
    1045,  # ER_ACCESS_DENIED_ERROR
    1049,  # ER_BAD_DB_ERROR
    1524,  # ER_PLUGIN_IS_NOT_LOADED
    1698,  # ER_ACCESS_DENIED_NO_PASSWORD_ERROR
}
MYSQL_OPTION_PREVENTS: Final = 1290  # ER_OPTION_PREVENTS_STATEMENT
# What a statement does to a file that it names is its own, unless the machine is full, out of memory or read-only.
MYSQL_FILES: Final = {
    1,  # EE_CANTCREATEFILE
    1004,  # ER_CANT_CREATE_FILE
    1016,  # ER_CANT_OPEN_FILE
    1180,  # ER_ERROR_DURING_COMMIT
}

# --- PostgreSQL: https://www.postgresql.org/docs/current/errcodes-appendix.html ---------------------------------------

PG_UNAVAILABLE: Final = {
    # down, starting or shutting down
    "08001",  # sqlclient_unable_to_establish_sqlconnection
    "08004",  # sqlserver_rejected_establishment_of_sqlconnection
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P04",  # database_dropped
    "F0000",  # config_file_error
    "F0001",  # lock_file_exists
    # full, out of memory or connections, or its files cannot be read; 53400, of temp_file_limit, is the statement's own
    "53000",  # insufficient_resources
    "53100",  # disk_full
    "53200",  # out_of_memory
    "53300",  # too_many_connections
    "58000",  # system_error
    "58030",  # io_error
    "58P01",  # undefined_file
    "58P02",  # duplicate_file
    # a standby that became no primary yet, or a primary that stopped being one
    "25006",  # read_only_sql_transaction
}
PG_DISCONNECTED: Final = {
    "08000",  # connection_exception
    "08003",  # connection_does_not_exist
    "08006",  # connection_failure
    "08007",  # transaction_resolution_unknown
    "08P01",  # protocol_violation: also how a pooler says that it has no connection
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "57P01",  # admin_shutdown: of the server or of one session
    "57P05",  # idle_session_timeout
}
PG_CONFLICT: Final = {
    "40000",  # transaction_rollback
    "40001",  # serialization_failure
    "40003",  # statement_completion_unknown
    "40P01",  # deadlock_detected
    "55006",  # object_in_use
    "55P03",  # lock_not_available
    "57014",  # query_canceled: also statement_timeout
    "72000",  # snapshot_too_old
}
PG_LOCK_WAIT: Final = {
    "55P03",  # lock_not_available: lock_timeout, and NOWAIT
}

# --- SQLite: https://www.sqlite.org/rescode.html ----------------------------------------------------------------------

SQLITE_UNAVAILABLE: Final = {
    3,  # SQLITE_PERM
    7,  # SQLITE_NOMEM
    8,  # SQLITE_READONLY
    10,  # SQLITE_IOERR
    13,  # SQLITE_FULL
    14,  # SQLITE_CANTOPEN
}
SQLITE_CONFLICT: Final = {
    5,  # SQLITE_BUSY
    6,  # SQLITE_LOCKED
    9,  # SQLITE_INTERRUPT
    15,  # SQLITE_PROTOCOL: a race for the write-ahead log
    17,  # SQLITE_SCHEMA
}
SQLITE_LOCK_WAIT: Final = {5, 6}
# https://www.sqlite.org/c3ref/get_autocommit.html: these may roll the transaction back. So may BUSY, but not in one
# that began IMMEDIATE and has its lock.
SQLITE_ROLLED_BACK: Final = {7, 9, 10, 13}
SQLITE_TEXTS: Final = {
    "locked": 5,
    "busy": 5,
    "interrupted": 9,
    "out of memory": 7,
    "readonly database": 8,
    "disk i/o error": 10,
    "database or disk is full": 13,
    "unable to open database file": 14,
}
"""For an error that lost the driver's own, which carries the code."""
