"""What `check --database` says of a table that other software made, alters when it starts, or writes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.core.checks import CheckMessage
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from agent_events.task.models import TaskOutboxMessage
from outbox.checks import check_tables
from tests import factories
from tests.repositories import FAILURE, locked

COPY = "task_copy"
HOUR = timedelta(hours=1)
EAST = timedelta(hours=8)

Execute = Callable[[str], None]

on_each_mysql = pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)


def found(alias: str) -> dict[str, CheckMessage]:
    messages = check_tables(databases=[alias])
    assert all(message.hint for message in messages)
    return {str(message.id): message for message in messages}


@pytest.fixture
def execute(alias: str) -> Execute:
    def run(sql: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)

    return run


@pytest.fixture
def copied(execute: Execute) -> Iterator[str]:
    """Have the task service's rows in a copy of its table, which the test may alter."""
    execute(f"CREATE TABLE {COPY} LIKE task_outbox_messages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskOutboxMessage._meta, "db_table", COPY)
        for each in TaskOutboxMessage._meta.concrete_fields:
            # Django remembers the table of each column that it has selected once.
            patch.delitem(each.__dict__, "cached_col", raising=False)
        yield COPY
    for each in TaskOutboxMessage._meta.concrete_fields:
        each.__dict__.pop("cached_col", None)
    execute(f"DROP TABLE {COPY}")


def statement_of(message: CheckMessage) -> str:
    """Return what the hint tells to run."""
    return str(message.hint).partition("Run: ")[2].partition(". ")[0].removesuffix(".")


# --- defaults ----------------------------------------------------------------------------------------------------


@on_each_mysql
def test_lost_defaults_of_columns_that_other_software_does_not_know_are_an_error(
    alias: str, copied: str, execute: Execute
) -> None:
    for column in ("put_back_count", "traceparent", "parks_key"):
        execute(f"ALTER TABLE {copied} ALTER COLUMN {column} DROP DEFAULT")

    messages = found(alias)

    assert set(messages) == {"outbox.E091"}
    for column in ("put_back_count", "traceparent", "parks_key"):
        assert column in str(messages["outbox.E091"])
    with pytest.raises(Exception, match="default value"):
        write_as_others(execute, copied)
    execute(statement_of(messages["outbox.E091"]))
    write_as_others(execute, copied)
    assert found(alias) == {}


def write_as_others(execute: Execute, table: str) -> None:
    """Insert a row as software does that knows the shared columns only."""
    execute(
        f"INSERT INTO {table} (event_type, service_name, topic, message_key, payload, status, retry_count, max_retry,"
        " created_at, updated_at) VALUES ('a.b', 'task', 't', 'k', '{}', 'pending', 0, 20, UTC_TIMESTAMP(3),"
        " UTC_TIMESTAMP(3))"
    )


@on_each_mysql
def test_lost_defaults_of_shared_columns_are_a_warning(alias: str, copied: str, execute: Execute) -> None:
    for column in ("status", "retry_count", "created_at", "topic"):
        execute(f"ALTER TABLE {copied} ALTER COLUMN {column} DROP DEFAULT")
    messages = found(alias)
    assert set(messages) == {"outbox.W086"}

    execute(statement_of(messages["outbox.W086"]))

    assert found(alias) == {}
    execute(f"INSERT INTO {copied} (event_type, message_key, payload) VALUES ('a.b', 'k', '{{}}')")
    row = TaskOutboxMessage.objects.using(alias).get()
    assert (row.status, row.retry_count, row.topic) == ("pending", 0, "")
    assert abs(row.created_at - factories.database_now(alias)) < timedelta(minutes=1)


@on_each_mysql
def test_column_of_other_software_that_publishing_does_not_fill_is_an_error(
    alias: str, copied: str, execute: Execute
) -> None:
    execute(f"ALTER TABLE {copied} ADD COLUMN tenant_id BIGINT NOT NULL, ADD COLUMN note VARCHAR(9) NULL")
    message = found(alias)["outbox.E092"]
    assert "have no default: tenant_id." in str(message)

    execute(str(message.hint).partition("NULL: ")[2].removesuffix("."))

    assert found(alias) == {}


# --- time zones --------------------------------------------------------------------------------------------------


def test_rows_of_a_writer_in_local_time_are_a_warning(alias: str) -> None:
    local = factories.database_now(alias) + EAST
    written = factories.row(alias, next_retry_at=local, created_at=local, updated_at=local)

    message = found(alias)["outbox.W087"]

    assert "1 pending rows of table 'agent_outbox_messages'" in str(message)
    assert "time_zone" in str(message.hint)
    factories.change(alias, written, next_retry_at=factories.database_now(alias))
    assert found(alias) == {}


def test_attempt_that_other_software_noted_in_local_time_is_a_warning(alias: str) -> None:
    local = factories.database_now(alias) + EAST
    factories.row(alias, next_retry_at=local, updated_at=local, retry_count=1)
    assert set(found(alias)) == {"outbox.W087"}


def test_what_was_put_off_is_no_writer_in_local_time(alias: str) -> None:
    """Nor is a row whose clock is a little ahead, nor one that is not pending."""
    repository, soon = factories.repository(), factories.database_now(alias) + HOUR
    retried, waiting, interrupted = factories.rows(alias, 3)
    repository.retry(*locked(repository, retried), due_at=soon, failure=FAILURE)
    repository.wait([waiting], until=soon)
    repository.interrupt(*locked(repository, interrupted), due_at=soon)
    factories.row(alias, due_in=timedelta(minutes=4))
    factories.row(alias, due_in=HOUR, status="published")
    assert found(alias) == {}


# --- tables that are there before their migration ----------------------------------------------------------------


def test_tables_that_are_there_before_their_migration_are_named(alias: str) -> None:
    recorder = MigrationRecorder(connections[alias])
    recorder.record_unapplied("task", "0001_initial")
    try:
        messages = found(alias)
    finally:
        recorder.record_applied("task", "0001_initial")
    assert set(messages) == {"outbox.W081", "outbox.W085"}
    assert "'task_outbox_messages'" in str(messages["outbox.W085"])
    assert "migrate task --fake-initial" in str(messages["outbox.W085"].hint)


@on_each_mysql
def test_tables_before_their_migration_that_lack_columns_are_an_error(alias: str, execute: Execute) -> None:
    recorder = MigrationRecorder(connections[alias])
    recorder.record_unapplied("task", "0001_initial")
    try:
        execute("ALTER TABLE task_outbox_messages DROP COLUMN put_back_count")
        try:
            messages = found(alias)
        finally:
            execute("ALTER TABLE task_outbox_messages ADD COLUMN put_back_count INTEGER NOT NULL DEFAULT 0")
    finally:
        recorder.record_applied("task", "0001_initial")
    assert set(messages) == {"outbox.W081", "outbox.E090"}
    assert "task_outbox_messages: put_back_count" in str(messages["outbox.E090"])
    assert "docs/shared-tables.md" in str(messages["outbox.E090"].hint)
