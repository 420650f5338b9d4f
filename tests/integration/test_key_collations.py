"""New tables compare keys and types byte for byte; of one that exists a check says how to change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.db import connections, models
from django.db.migrations import operations
from django.db.migrations.loader import MigrationLoader

from agent_events.agent.events import AgentStateSnapshot
from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from agent_events.memory.models import MemoryOutboxMessage
from agent_events.task.models import TaskOutboxMessage
from benchmarks import plans
from outbox import publish
from outbox.brokers.memory import MemoryBroker
from outbox.checks import check_tables
from outbox.contrib.shared_table.relocation import Rehoming
from outbox.fields import KeyField, key_collation
from outbox.models import RejectedRecord
from outbox.registry.catalog import route_registry, service_models
from outbox.testing import drain
from outbox.workers.build import build_consumer
from tests import factories
from tests.integration.test_query_plans import ALMOST_ALL_DONE, EXPECTED, ROWS, of_table
from tests.repositories import new_row

pytestmark = pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)

NO_PAD = {"mariadb": "utf8mb4_nopad_bin", "mysql": "utf8mb4_0900_bin"}
ELSEWHERE = "made_elsewhere"
KEYS = ("event_type", "message_key", "event_id")
ALIKE = ("Key", "key", "key ", "kéy", "ke\u0301y")
"""One key for a collation that ignores case, accents and blanks at the end."""

Execute = Callable[..., list[Any]]


@pytest.fixture
def execute(alias: str) -> Execute:
    def run(sql: str, *parameters: Any) -> list[Any]:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    return run


def definitions(execute: Execute, table: str) -> dict[str, tuple[Any, ...]]:
    """Return what the server says of each column, by its name."""
    found = execute(
        "SELECT column_name, collation_name, column_type, is_nullable, column_default, extra, column_comment,"
        " ordinal_position FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s",
        table,
    )
    return {name: tuple(rest) for name, *rest in found}


def collations(execute: Execute, table: str) -> dict[str, str]:
    return {name: found[0] for name, found in definitions(execute, table).items()}


def give(execute: Execute, table: str, collation: str, *columns: str) -> None:
    """Give columns a collation as they could have had it before."""
    types = {"event_type": "varchar(64)", "message_key": "varchar(128)", "event_id": "varchar(128)"}
    for column in columns:
        default = " DEFAULT ''" if column == "event_id" else ""
        execute(
            f"ALTER TABLE {table} MODIFY {column} {types[column]} CHARACTER SET utf8mb4 COLLATE {collation}"
            f" NOT NULL{default}"
        )


def messages(alias: str) -> dict[str, CheckMessage]:
    found = {str(message.id): message for message in check_tables(databases=[alias])}
    assert all(message.hint for message in found.values())
    return found


def named_statement(message: CheckMessage) -> str:
    return str(message.hint)[str(message.hint).index("ALTER TABLE") :].removesuffix(".")


@pytest.fixture
def elsewhere(execute: Execute) -> Iterator[str]:
    """Have the task service's model look for its rows in a copy of its table."""
    execute(f"CREATE TABLE {ELSEWHERE} LIKE task_outbox_messages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskOutboxMessage._meta, "db_table", ELSEWHERE)
        yield ELSEWHERE
    execute(f"DROP TABLE {ELSEWHERE}")


# --- new tables --------------------------------------------------------------------------------------------------


def test_new_tables_compare_keys_and_types_byte_for_byte(alias: str, execute: Execute) -> None:
    for model in service_models().values():
        found = collations(execute, model._meta.db_table)
        assert {found[column] for column in KEYS} == {NO_PAD[alias]}, model
    assert collations(execute, AgentStateSnapshotRecord._meta.db_table)["conversation_id"] == NO_PAD[alias]
    assert messages(alias) == {}


def test_server_tells_keys_and_types_apart_that_look_alike(alias: str, execute: Execute) -> None:
    factories.repository().insert([new_row(n, message_key=key, event_type=key) for n, key in enumerate(ALIKE)])

    for column in ("message_key", "event_type"):
        for key in ALIKE:
            assert len(execute(f"SELECT id FROM {factories.TABLE} WHERE {column} = %s", key)) == 1
        assert len(execute(f"SELECT DISTINCT {column} FROM {factories.TABLE}")) == len(ALIKE)


def test_mysql_without_the_collation_falls_back_and_is_warned_of(
    alias: str, execute: Execute, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection: Any = connections[alias]
    monkeypatch.setitem(connection.__dict__, "mysql_is_mariadb", False)
    monkeypatch.setitem(connection.__dict__, "mysql_version", (8, 0, 16))

    assert key_collation(connection) == "utf8mb4_bin"
    assert KeyField(max_length=64).db_parameters(connection)["collation"] == "utf8mb4_bin"
    give(execute, elsewhere, "utf8mb4_bin", "message_key")
    hint = str(messages(alias)["outbox.W084"].hint)
    assert hint.startswith("Upgrade the server, which has no utf8mb4_0900_bin.")
    assert "COLLATE utf8mb4_0900_bin" in hint


# --- tables that exist -------------------------------------------------------------------------------------------


def test_no_migration_alters_keys_and_types_of_a_table_that_exists(alias: str) -> None:
    """It may be large, and other software may write to it: a person decides when."""
    loader = MigrationLoader(None)
    labels = {model._meta.app_label for model in service_models().values()}
    altering = (operations.AlterField, operations.RunSQL, operations.RunPython)
    found = {
        (label, name, operation.describe())
        for (label, name), migration in loader.disk_migrations.items()
        for operation in migration.operations
        if label in labels and isinstance(operation, altering) and getattr(operation, "name", KEYS[0]) in KEYS
    }
    assert found == set()


def test_migration_of_a_table_from_before_leaves_its_collations(alias: str, execute: Execute) -> None:
    connection: Any = connections[alias]
    loader = MigrationLoader(connection)
    before, after = (loader.project_state(("task", name)).apps for name in ("0004_interruptions", "0005_event_id"))
    old = before.get_model("task", "TaskOutboxMessage")
    old._meta.db_table = "from_before"
    with connection.schema_editor() as editor:
        editor.create_model(old)
    try:
        give(execute, "from_before", "utf8mb4_bin", "message_key")
        give(execute, "from_before", "utf8mb4_general_ci", "event_type")
        with connection.schema_editor() as editor:
            editor.add_field(old, after.get_model("task", "TaskOutboxMessage")._meta.get_field("event_id"))
        found = collations(execute, "from_before")
    finally:
        execute("DROP TABLE from_before")
    assert [found[column] for column in KEYS] == ["utf8mb4_general_ci", "utf8mb4_bin", NO_PAD[alias]]


@pytest.mark.parametrize(
    ("collation", "columns"),
    [
        ("utf8mb4_bin", ("message_key",)),
        ("utf8mb4_general_ci", ("event_type",)),
        ("utf8mb4_bin", KEYS),
        ("utf8mb4_unicode_ci", ("event_type", "event_id")),
    ],
)
def test_check_names_the_statement_that_changes_collations_and_nothing_else(
    alias: str, execute: Execute, elsewhere: str, collation: str, columns: tuple[str, ...]
) -> None:
    new = definitions(execute, elsewhere)
    give(execute, elsewhere, collation, *columns)

    warning = messages(alias)["outbox.W084"]
    assert warning.level < 40, "a warning, which stops nothing"
    assert f"'{ELSEWHERE}'" in str(warning)
    assert [column in str(warning) for column in KEYS] == [column in columns for column in KEYS]
    execute(named_statement(warning))

    assert messages(alias) == {}
    assert definitions(execute, elsewhere) == new


@pytest.mark.parametrize("character_set", ["utf8mb4", "latin1"])
def test_named_statement_keeps_what_other_software_said_of_its_columns(
    alias: str, execute: Execute, elsewhere: str, character_set: str
) -> None:
    """``MODIFY`` takes away what it does not name."""
    odd = """'it''s, a \\\\ "x", COLLATE y' COMMENT 'one, ''two''\n`event_type` varchar(1), COLLATE z'"""
    execute(f"ALTER TABLE {elsewhere} MODIFY event_type varchar(80) CHARACTER SET {character_set} NULL DEFAULT {odd}")
    execute(f"ALTER TABLE {elsewhere} MODIFY message_key varchar(200) NOT NULL DEFAULT (CONCAT('a', 'b')) COMMENT 'k'")
    before = definitions(execute, elsewhere)
    error = messages(alias)["outbox.E087"]

    with connections[alias].cursor() as cursor:
        cursor.execute(named_statement(error), None)

    after = definitions(execute, elsewhere)
    assert {after[column][0] for column in KEYS} == {NO_PAD[alias]}
    for column, found in after.items():
        assert found[1:] == before[column][1:], column
    assert "outbox.W084" not in messages(alias)


@pytest.mark.parametrize("mode", ["SET SESSION sql_mode = 'ANSI_QUOTES'", "SET SESSION sql_quote_show_create = 0"])
def test_statement_is_named_however_the_session_quotes_names(
    alias: str, execute: Execute, elsewhere: str, mode: str
) -> None:
    give(execute, elsewhere, "utf8mb4_bin", "message_key")
    try:
        execute(mode)
        execute(named_statement(messages(alias)["outbox.W084"]))
    finally:
        connections[alias].close()
    assert messages(alias) == {}


def test_keys_that_are_bytes_are_in_order(alias: str, execute: Execute, elsewhere: str) -> None:
    execute(f"ALTER TABLE {elsewhere} MODIFY event_type varbinary(64) NOT NULL")

    assert messages(alias) == {}


@pytest.mark.parametrize("collation", ["utf8mb4_bin", "utf8mb4_general_ci"])
def test_plans_use_the_same_indexes_after_the_named_statement(alias: str, execute: Execute, collation: str) -> None:
    repository = factories.repository()
    give(execute, factories.TABLE, collation, "event_type")
    give(execute, factories.TABLE, "utf8mb4_bin", "message_key")
    try:
        execute(named_statement(messages(alias)["outbox.W084"]))
        plans.fill(repository.route, ROWS, unfinished=ALMOST_ALL_DONE)
        found = {
            name: [of_table(repository, each.plan) for each in plans.explain(repository, query).statements]
            for name, query in plans.queries(repository).items()
        }
    finally:
        give(execute, factories.TABLE, NO_PAD[alias], "event_type", "message_key")

    for name, statements in found.items():
        for plan, allowed in zip(statements, EXPECTED[name], strict=True):
            assert all(each["key"] in among for each, among in zip(plan, allowed, strict=True)), (name, plan)


def test_tables_of_different_collations_work_together(alias: str, execute: Execute, broker: MemoryBroker) -> None:
    """Comparing columns of two of them is an error ("illegal mix of collations"), so no statement does."""
    kinds: dict[type[models.Model], tuple[str, str]] = {
        AgentOutboxMessage: ("utf8mb4_general_ci", "utf8mb4_bin"),
        MemoryOutboxMessage: ("utf8mb4_unicode_ci", NO_PAD[alias]),
    }
    for model, (of_type, of_key) in kinds.items():
        give(execute, model._meta.db_table, of_type, "event_type")
        give(execute, model._meta.db_table, of_key, "message_key", "event_id")
    try:
        for conversation_id in ("c-1", "C-1"):
            publish(
                AgentStateSnapshot(conversation_id=conversation_id, user_id=1, phase="plan", snapshot_json='{"n": 1}')
            )
        publish(AgentStateSnapshot(conversation_id="c-1", user_id=1, phase="done", snapshot_json='{"n": 2}'))
        lost = factories.row(alias, event_type="memory.extract.requested", event_id="e-7")
        registry = route_registry()
        moved = [
            each for batch in Rehoming(registry.catalog.route("agent"), registry).run(batch_size=10) for each in batch
        ]
        drained = drain("agent")
        consumer = build_consumer(registry.catalog.route("agent"), broker)
        consumer.handle([factories.record(b"garbage"), factories.record(b'{"outbox_id": 1, "event_type": "no"}')])
    finally:
        for model in kinds:
            give(execute, model._meta.db_table, NO_PAD[alias], *KEYS)

    assert [each.rows for each in moved] == [1]
    assert (drained.consumed, drained.dead) == (3, ())
    phases = AgentStateSnapshotRecord.objects.using(alias).values_list("conversation_id", "phase")
    assert sorted(phases) == [("C-1", "plan"), ("c-1", "done")]
    assert RejectedRecord.objects.using(alias).count() == 2
    assert not AgentOutboxMessage.objects.using(alias).filter(pk=lost).exists()
    assert MemoryOutboxMessage.objects.using(alias).get().event_id == "e-7"
