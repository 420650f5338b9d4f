"""docs/shared-tables.md, followed to the letter: a table that other software made becomes what the migrations make.

In a copy of the project, as the page begins with a change of the service's model. The table has the column `biz_type`,
times of three digits, and columns that may be NULL.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest

from tests import services

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "shared-tables.md"
OUTBOX, SNAPSHOTS = "agent_outbox_messages", "agent_state_snapshot_records"

MADE_ELSEWHERE = f"""\
CREATE TABLE {OUTBOX} (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, biz_type VARCHAR(64) NOT NULL, service_name VARCHAR(64),
  topic VARCHAR(128) NOT NULL, message_key VARCHAR(128) NOT NULL, payload LONGTEXT NOT NULL,
  status VARCHAR(32) NOT NULL, retry_count INT NOT NULL DEFAULT 0, max_retry INT NOT NULL DEFAULT 20,
  next_retry_at DATETIME(3), last_error TEXT, published_at DATETIME(3), consumed_at DATETIME(3),
  created_at DATETIME(3), updated_at DATETIME(3), KEY idx_status (status)
) CHARSET = utf8mb4 COLLATE = utf8mb4_general_ci;
CREATE TABLE {SNAPSHOTS} (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, conversation_id VARCHAR(128) NOT NULL, user_id BIGINT NOT NULL,
  phase VARCHAR(32) NOT NULL, snapshot_json LONGTEXT NOT NULL, created_at DATETIME(3), updated_at DATETIME(3),
  UNIQUE KEY uk_conversation (conversation_id), KEY idx_user (user_id)
) CHARSET = utf8mb4 COLLATE = utf8mb4_general_ci;
INSERT INTO {SNAPSHOTS} (conversation_id, user_id, phase, snapshot_json, created_at, updated_at)
  VALUES ('c1', 1, 'before', '{{}}', UTC_TIMESTAMP(3), UTC_TIMESTAMP(3))
"""

Cursor = Any


class Database:
    """A database of the test's own on a server."""

    def __init__(self, url: str, purpose: str, project: Path) -> None:
        import MySQLdb

        self._project = project
        self.name = f"adoption_{purpose}_{secrets.token_hex(4)}"
        self.url = urlunsplit(urlsplit(url)._replace(path=f"/{self.name}"))
        parts = urlsplit(url)
        self._connection = MySQLdb.connect(
            host=parts.hostname,
            port=parts.port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            autocommit=True,
        )
        self.run(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4; USE {self.name}")

    def run(self, script: str) -> list[tuple[Any, ...]]:
        """Run statements; return the rows of the last one."""
        rows: list[tuple[Any, ...]] = []
        with self._connection.cursor() as cursor:
            for statement in filter(str.strip, script.split(";")):
                cursor.execute(statement)
                rows = list(cursor.fetchall())
        return rows

    def manage(self, *arguments: str) -> str:
        """Run a `manage.py` command on this database."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "DJANGO_"))}
        environment |= {"DATABASE_URL": self.url, "READ_DOT_ENV": "false", "SECRET_KEY": "for-this-test"}
        environment.pop("OUTBOX", None)
        result = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self._project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def columns(self, table: str) -> dict[str, tuple[Any, ...]]:
        found = self.run(
            "SELECT column_name, column_type, is_nullable, column_default, collation_name, generation_expression"
            f" FROM information_schema.columns WHERE table_schema = '{self.name}' AND table_name = '{table}'"
        )
        by_name = {name: rest for name, *rest in found}
        # What the collation of a column without one of its own is does not matter; that of a key does.
        return {
            name: (kind, null, default, collation if str(collation).endswith("_bin") else None, generated)
            for name, (kind, null, default, collation, generated) in by_name.items()
        }

    def indexes(self, table: str) -> dict[str, str]:
        return dict(
            self.run(
                "SELECT index_name, GROUP_CONCAT(column_name ORDER BY seq_in_index) FROM information_schema.statistics"
                f" WHERE table_schema = '{self.name}' AND table_name = '{table}' GROUP BY index_name"
            )
        )

    def drop(self) -> None:
        self.run(f"DROP DATABASE IF EXISTS {self.name}")
        self._connection.close()


@pytest.fixture(params=["mariadb", "mysql"])
def make_database(request: pytest.FixtureRequest, project: Path) -> Iterator[Any]:
    """Give a function that makes a database, dropped at the end."""
    url = services.require(request.param)
    made: list[Database] = []

    def make(purpose: str) -> Database:
        made.append(Database(url, purpose, project))
        return made[-1]

    yield make
    for database in made:
        database.drop()


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [str(each) for each in found]


def statements(name: str, *, is_mariadb: bool) -> str:
    """Return the SQL of the page under ``-- adopt: name``, for the server as the page says."""
    (script,) = (block for block in blocks("sql") if block.startswith(f"-- adopt: {name}\n"))
    return script.replace("utf8mb4_0900_bin", "utf8mb4_nopad_bin") if is_mariadb else script


def insert(database: Database, key: str, status: str, *, named: bool = True) -> None:
    """Write an event as another program does, by the shared columns."""
    payload = (
        f'{{"payload": {{"conversation_id": "{key}", "user_id": 1, "phase": "{status}", "snapshot_json": "{{}}"}}}}'
    )
    service_name = "'agent'" if named else "NULL"
    database.run(
        f"INSERT INTO {OUTBOX} (biz_type, service_name, topic, message_key, payload, status)"
        f" VALUES ('agent.state.snapshot.persist', {service_name}, 't', '{key}', '{payload}', '{status}')"
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the project, with the agent's model as the page has it and the migration that it asks for."""
    for name in ("outbox", "agent_events", "smartflow"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "manage.py", tmp_path)
    (lines,) = (block for block in blocks("python") if block.startswith("class AgentOutboxMessage"))
    models = tmp_path / "agent_events" / "agent" / "models.py"
    text = models.read_text(encoding="utf-8")
    declared = text.partition("class AgentOutboxMessage")[2].partition("    class Meta")[0]
    body = "\n".join(lines.splitlines()[1:])
    assert body.startswith('    service = "agent"\n')
    said = declared.replace('    service = "agent"', body)
    assert said != declared
    models.write_text(text.replace(declared, said), encoding="utf-8")
    return tmp_path


def adopt(adopted: Database) -> None:
    """Follow the steps of the page."""
    is_mariadb = "MariaDB" in adopted.run("SELECT VERSION()")[0][0]
    for step in ("outbox", "dead", "snapshots"):
        adopted.run(statements(step, is_mariadb=is_mariadb))
    (commands,) = (block for block in blocks("sh") if "--fake-initial" in block)
    for command in commands.splitlines():
        adopted.manage(*command.removeprefix("python manage.py ").split())


def of_three_digits(columns: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Return the columns of an outbox table as they are where its shared times have three digits."""
    shared = {"next_retry_at", "published_at", "consumed_at", "created_at", "updated_at"}
    return {
        name: tuple(str(each).replace("(6)", "(3)") if name in shared else each for each in rest)
        for name, rest in columns.items()
    }


def test_adopted_tables_equal_migrated_ones_and_work(make_database: Any, project: Path) -> None:
    fresh, adopted = make_database("fresh"), make_database("adopted")
    (written,) = (block for block in blocks("sh") if "makemigrations" in block)
    fresh.manage("migrate", "agent", "-v0")
    fresh.manage(*written.removeprefix("python manage.py ").split())
    fresh.manage("migrate", "-v0")
    adopted.run(MADE_ELSEWHERE)
    insert(adopted, "c1", "pending")
    insert(adopted, "c2", "published", named=False)
    insert(adopted, "C2", "pending")
    insert(adopted, "c3", "dead")
    zero = "'0000-00-00 00:00:00'"
    adopted.run(
        "SET @usual = @@SESSION.sql_mode, SESSION sql_mode = '';"
        f" UPDATE {OUTBOX} SET next_retry_at = {zero}, published_at = {zero}, consumed_at = {zero},"
        f" created_at = {zero}, updated_at = {zero} WHERE message_key IN ('c2', 'c3'); SET SESSION sql_mode = @usual"
    )

    adopt(adopted)

    assert of_three_digits(adopted.columns(OUTBOX)) == of_three_digits(fresh.columns(OUTBOX))
    assert adopted.columns(SNAPSHOTS) == fresh.columns(SNAPSHOTS)
    assert "biz_type" in fresh.columns(OUTBOX)
    assert fresh.indexes(OUTBOX).items() <= adopted.indexes(OUTBOX).items()
    said = adopted.manage("check", "--database", "default", "--tag", "outbox")
    assert OUTBOX not in said

    insert(adopted, "c1", "pending")  # the other software goes on writing as before
    adopted.manage("run_relay", "agent", "--once")
    adopted.manage("consume", "agent", "--once")

    assert adopted.run(f"SELECT DISTINCT status FROM {OUTBOX} WHERE message_key <> 'c3'") == [("consumed",)]
    kept = adopted.run(f"SELECT conversation_id, phase, outbox_id FROM {SNAPSHOTS} ORDER BY id")
    assert sorted(kept) == [("C2", "pending", 3), ("c1", "pending", 5), ("c2", "published", 2)]
    assert adopted.run(f"SELECT dead_at IS NOT NULL FROM {OUTBOX} WHERE message_key = 'c3'") == [(1,)]
