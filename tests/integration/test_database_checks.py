"""`manage.py check --database …` says what is wrong with servers and tables, and never stops `migrate`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from agent_events.task.models import TaskOutboxMessage
from outbox.checks import check_leftovers, check_tables, schema
from tests import factories
from tests.services import CHECKOUT

ELSEWHERE = "made_elsewhere"

Execute = Callable[[str], None]

on_each_mysql = pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)


def found(alias: str) -> dict[str, list[CheckMessage]]:
    messages: dict[str, list[CheckMessage]] = {}
    for message in check_tables(databases=[alias]):
        assert message.hint, f"{message.id} has no hint"
        messages.setdefault(str(message.id), []).append(message)
    return messages


@pytest.fixture
def execute(alias: str) -> Execute:
    def run(sql: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)

    return run


@contextmanager
def task_table(name: str) -> Iterator[None]:
    """Have the task service's model look for its rows in another table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskOutboxMessage._meta, "db_table", name)
        yield


@pytest.fixture
def made_elsewhere(execute: Execute) -> Iterator[str]:
    """Make the task service's table one that has its columns and nothing else."""
    execute(f"CREATE TABLE {ELSEWHERE} AS SELECT * FROM task_outbox_messages WHERE 1 = 0")
    with task_table(ELSEWHERE):
        yield ELSEWHERE
    execute(f"DROP TABLE {ELSEWHERE}")


def test_migrated_database_is_in_order(alias: str) -> None:
    assert found(alias) == {}


def test_database_without_services_is_not_looked_at(alias: str, configure: Callable[..., None]) -> None:
    configure(MAX_PAYLOAD_BYTES=2**31)
    for other in {"default", "mariadb", "mysql", "postgres"} - {alias}:
        assert found(other) == {}


def test_missing_table_is_an_error(alias: str) -> None:
    with task_table("dropped"):
        messages = found(alias)
    assert set(messages) == {"outbox.E084"}
    assert "'dropped'" in str(messages["outbox.E084"][0])


def test_missing_columns_are_an_error(alias: str, made_elsewhere: str, execute: Execute) -> None:
    execute(f"ALTER TABLE {made_elsewhere} DROP COLUMN parks_key")
    execute(f"ALTER TABLE {made_elsewhere} DROP COLUMN traceparent")
    messages = found(alias)
    assert set(messages) == {"outbox.E085"}
    assert "parks_key, traceparent" in str(messages["outbox.E085"][0])


def test_missing_indexes_are_warnings_that_say_how_to_make_them(
    alias: str, made_elsewhere: str, execute: Execute
) -> None:
    warnings = found(alias)["outbox.W082"]
    assert len(warnings) == 2
    for warning in warnings:
        statement = str(warning.hint).removeprefix("Create it: ").removesuffix(".")
        execute(statement.replace(" ON", "_of_theirs ON"))  # the name itself is taken by the real table's index
    assert "outbox.W082" not in found(alias)


def test_index_of_another_name_will_do(alias: str, made_elsewhere: str, execute: Execute) -> None:
    execute(f"CREATE INDEX their_due ON {made_elsewhere} (status, next_retry_at, id, shard, event_type, topic)")
    execute(f"CREATE INDEX their_key ON {made_elsewhere} (message_key, status, id)")
    assert found(alias) == {}


@on_each_mysql
def test_keys_compared_without_case_are_an_error(alias: str, made_elsewhere: str, execute: Execute) -> None:
    execute(
        f"ALTER TABLE {made_elsewhere} MODIFY message_key varchar(128) CHARACTER SET utf8mb4 "
        f"COLLATE utf8mb4_general_ci NOT NULL"
    )
    message = found(alias)["outbox.E087"][0]
    execute(str(message.hint).removesuffix("."))
    assert "outbox.E087" not in found(alias)


EMOJI = "🙂"


def emoji_in(alias: str) -> bool:
    """Write a payload with an emoji into the task service's table, and say whether it is there."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {TaskOutboxMessage._meta.db_table} (id, event_type, message_key, payload, status, topic)"
            " VALUES (1, 'a.b', 'k', %s, 'pending', 't')",
            [EMOJI],
        )
        cursor.execute(f"SELECT payload FROM {TaskOutboxMessage._meta.db_table}")
        ((payload,),) = cursor.fetchall()
    return bool(payload == EMOJI)


@on_each_mysql
@pytest.mark.parametrize("character_set", ["utf8mb3", "latin1"])
def test_table_that_cannot_hold_every_character_is_an_error(alias: str, execute: Execute, character_set: str) -> None:
    """Made as a migration makes it, but by a server whose default is another one."""
    execute(f"CREATE TABLE {ELSEWHERE} LIKE task_outbox_messages")
    try:
        with task_table(ELSEWHERE):
            execute(f"ALTER TABLE {ELSEWHERE} CONVERT TO CHARACTER SET {character_set}")
            messages = found(alias)
            assert set(messages) == {"outbox.E087", "outbox.E088"}
            (message,) = messages["outbox.E088"]
            for part in (f"'{ELSEWHERE}'", "payload", f"in {character_set}"):
                assert part in str(message)
            for statement in str(message.hint).removesuffix(".").partition(": ")[2].split("; "):
                execute(statement)
            assert found(alias) == {}
            assert emoji_in(alias)
    finally:
        execute(f"DROP TABLE {ELSEWHERE}")


@on_each_mysql
def test_single_column_in_another_character_set_is_an_error(alias: str, made_elsewhere: str, execute: Execute) -> None:
    execute(f"ALTER TABLE {made_elsewhere} MODIFY payload longtext CHARACTER SET latin1 NOT NULL")
    (message,) = found(alias)["outbox.E088"]
    assert "keeps payload in latin1:" in str(message)


@on_each_mysql
def test_session_that_does_not_speak_every_character_is_an_error(alias: str, execute: Execute) -> None:
    execute("SET NAMES utf8mb3")
    try:
        assert set(found(alias)) == {"outbox.E089"}
    finally:
        execute("SET NAMES utf8mb4")
    assert found(alias) == {}


@pytest.mark.parametrize("database_alias", ["postgres"], indirect=True)
def test_database_that_is_not_encoded_in_utf8_is_an_error(alias: str, execute: Execute) -> None:
    connection = connections[alias]
    other = f"latin1_{os.getpid()}"
    execute(f"CREATE DATABASE {other} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        connection.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(connection.settings_dict, "NAME", other)
            (message,) = found(alias)["outbox.E089"]
            assert "encoded in LATIN1" in str(message)
        connection.close()
    finally:
        execute(f"DROP DATABASE {other}")


@on_each_mysql
def test_table_without_transactions_is_an_error(alias: str, made_elsewhere: str, execute: Execute) -> None:
    execute(f"ALTER TABLE {made_elsewhere} ENGINE = MyISAM")
    message = found(alias)["outbox.E086"][0]
    execute(str(message.hint).removesuffix("."))
    assert "outbox.E086" not in found(alias)


def test_payloads_that_the_server_would_not_take_are_an_error(alias: str, configure: Callable[..., None]) -> None:
    configure(MAX_PAYLOAD_BYTES=2 * 1024**3)
    assert set(found(alias)) == ({"outbox.E083"} if connections[alias].vendor == "mysql" else set())


def test_old_server_is_an_error(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_MINIMUM", dict.fromkeys(schema._MINIMUM, (999, 1)))
    assert "999.1 is needed" in str(found(alias)["outbox.E082"][0])


def test_tables_of_an_app_that_is_not_migrated_are_not_looked_at(alias: str) -> None:
    recorder = MigrationRecorder(connections[alias])
    recorder.record_unapplied("task", "0001_initial")
    try:
        with task_table("not_there_yet"):
            messages = found(alias)
    finally:
        recorder.record_applied("task", "0001_initial")
    assert set(messages) == {"outbox.W081", "outbox.W085"}, "the tables are there, as the test knows"
    assert "not applied of task;" in str(messages["outbox.W081"][0])


def test_database_that_does_not_answer_is_a_message(alias: str) -> None:
    connection = connections[alias]
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", "nowhere/at/all")
        assert set(found(alias)) == {"outbox.E081"}
    connection.close()


def test_rows_that_nobody_relays_are_a_warning_before_deployment(alias: str) -> None:
    foreign = factories.rows(alias, 2, event_type="task.urgency.promote.requested")
    factories.row(alias, event_type="agent.state.snapshot.persist")
    (message,) = check_leftovers(databases=[alias])
    assert message.id == "outbox.W083"
    assert str(message).startswith("agent.AgentOutboxMessage: (outbox.W083) 2 unfinished rows")
    assert "rehome_outbox agent" in str(message.hint)
    assert found(alias) == {}, "it is not said each time that a command is run"
    factories.change(alias, foreign, status="consumed")
    assert list(check_leftovers(databases=[alias])) == []
    assert list(check_leftovers(databases=None)) == []


def test_checks_let_migrate_make_what_they_miss(tmp_path: Path) -> None:
    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    environment: dict[str, Any] = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartflow.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'new.sqlite3'}",
        "DEBUG": "true",
        "READ_DOT_ENV": "false",
    }
    before = manage("check", "--tag", "outbox", "--database", "default", "--fail-level", "WARNING")
    assert before.returncode == 1
    assert "outbox.W081" in before.stderr
    migrated = manage("migrate", "--verbosity", "0")
    assert migrated.returncode == 0, migrated.stderr
    after = manage("check", "--tag", "outbox", "--database", "default")
    assert after.returncode == 0, after.stderr
    assert "outbox.W081" not in after.stderr
