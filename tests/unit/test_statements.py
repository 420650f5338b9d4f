"""Which statements of a handler are refused because they would end the consumer's transaction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from outbox.consumer.statements import StatementWatch
from outbox.exceptions import TransactionEndedError

VENDORS = ("mysql", "postgresql", "sqlite")

ENDS_ANYWHERE = [
    "COMMIT",
    "commit work",
    "  \n\tCOMMIT AND CHAIN",
    "ROLLBACK",
    "rollback work",
    "ROLLBACK AND NO CHAIN",
    "BEGIN",
    "begin immediate",
    "START TRANSACTION READ ONLY",
    "start\n  transaction",
    "END",
    "END TRANSACTION",
    "ABORT",
    "PREPARE TRANSACTION 'name'",
    "SET autocommit = 1",
    "SET AUTOCOMMIT=0",
    "set session autocommit = on",
    "SET LOCAL autocommit = 1",
    "SET @@local.autocommit = 1",
    "SET @@autocommit = 1",
    "SET @@session.autocommit = 1",
    "SET @@SESSION.autocommit = 1",
]

ENDS_ON_MYSQL = [
    "ALTER TABLE orders ADD COLUMN note TEXT",
    "CREATE TABLE copies (id INT)",
    "create index by_key on orders (message_key)",
    "CREATE DATABASE other",
    "DROP TABLE copies",
    "drop index by_key on orders",
    "TRUNCATE orders",
    "TRUNCATE TABLE orders",
    "RENAME TABLE orders TO old_orders",
    "GRANT SELECT ON orders TO ann",
    "REVOKE SELECT ON orders FROM ann",
    "LOCK TABLES orders WRITE",
    "LOCK TABLE orders READ",
    "UNLOCK TABLES",
    "ANALYZE TABLE orders",
    "OPTIMIZE TABLE orders",
    "REPAIR TABLE orders",
    "CHECK TABLE orders",
    "FLUSH TABLES",
    "CACHE INDEX orders IN hot",
    "LOAD INDEX INTO CACHE orders",
    "INSTALL PLUGIN audit SONAME 'audit.so'",
    "uninstall plugin audit",
    "SET PASSWORD = 'secret'",
    "XA START 'name'",
]

LEAVES_IT_OPEN = [
    "SELECT 1",
    "INSERT INTO orders (note) VALUES ('COMMIT')",
    "UPDATE orders SET note = 'ROLLBACK'",
    "DELETE FROM orders",
    "SAVEPOINT outbox_1",
    "RELEASE SAVEPOINT outbox_1",
    "ROLLBACK TO SAVEPOINT outbox_1",
    "rollback to outbox_1",
    "ROLLBACK WORK TO SAVEPOINT outbox_1",
    "rollback  work\n to savepoint outbox_1",
    "CREATE TEMPORARY TABLE copies (id INT)",
    "create  temporary table copies (id int)",
    "DROP TEMPORARY TABLE copies",
    "SET innodb_lock_wait_timeout = 1",
    "SET SESSION lock_wait_timeout = 1",
    "SET @@session.sql_mode = ''",
    "WITH ended AS (SELECT 1) SELECT * FROM ended",
    "CALL settle_orders()",
    # Words that only begin like one.
    "COMMITTED",
    "ENDING",
    "ALTERNATE",
    "CHECKSUM TABLE orders",
    "SET autocommitted = 1",
    "",
]


class Sent:
    """The driver behind the watch: remembers what came through."""

    def __init__(self) -> None:
        self.statements: list[Any] = []

    def __call__(self, sql: Any, params: Any, many: bool, context: dict[str, Any]) -> str:
        self.statements.append(sql)
        return "answer"


def send(sql: Any, vendor: str) -> Sent:
    sent = Sent()
    context = {"connection": SimpleNamespace(vendor=vendor, alias="default", closed_in_transaction=False)}
    assert StatementWatch()(sent, sql, None, False, context) == "answer"
    return sent


def is_refused(sql: str, vendor: str) -> bool:
    try:
        assert send(sql, vendor).statements == [sql]
    except TransactionEndedError:
        return True
    return False


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("sql", ENDS_ANYWHERE)
def test_what_ends_a_transaction_is_refused_on_every_database(sql: str, vendor: str) -> None:
    assert is_refused(sql, vendor)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("sql", ENDS_ON_MYSQL)
def test_what_commits_by_itself_is_refused_where_it_does(sql: str, vendor: str) -> None:
    """On PostgreSQL and SQLite a change of the schema is part of its transaction."""
    assert is_refused(sql, vendor) == (vendor == "mysql")


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("sql", LEAVES_IT_OPEN)
def test_what_leaves_the_transaction_open_is_sent(sql: str, vendor: str) -> None:
    assert not is_refused(sql, vendor)


COMMENTS = ["/* why */", "/* why\n   and when */ /* and who */", "-- why\n", "# why\n", "  -- /* why\n", "/*!50000 "]


@pytest.mark.parametrize("comment", COMMENTS)
def test_a_comment_in_front_hides_nothing(comment: str) -> None:
    assert is_refused(f"{comment}COMMIT", "mysql")
    assert is_refused(f"{comment} truncate orders", "mysql")
    assert not is_refused(f"{comment}SELECT 'COMMIT' FROM orders", "mysql")


@pytest.mark.parametrize(
    "sql", ["/* COMMIT */ SELECT 1", "-- COMMIT", "/* a */ SELECT 1 /* b */ COMMIT", "-- a\n-- COMMIT"]
)
def test_a_statement_that_stands_in_a_comment_ends_nothing(sql: str) -> None:
    assert not is_refused(sql, "mysql")


def test_a_long_statement_behind_many_comments_is_looked_at_quickly() -> None:
    assert not is_refused("/* a */" * 20_000 + "INSERT INTO orders VALUES " + "('*/ x */')," * 20_000, "mysql")


def test_a_refused_statement_is_never_sent_and_its_error_names_it() -> None:
    sent = Sent()
    context = {"connection": SimpleNamespace(vendor="mysql", alias="default", closed_in_transaction=False)}

    with pytest.raises(TransactionEndedError, match="'TRUNCATE orders', which would end the transaction"):
        StatementWatch()(sent, "  TRUNCATE orders", None, False, context)

    assert sent.statements == []


def test_what_is_no_text_is_left_to_the_driver() -> None:
    composed = object()

    assert send(composed, "postgresql").statements == [composed]
