"""Databases of a test's own on the real servers, and looking into them by the bare driver.

A test gets a copy of a database that was migrated once a run, by the project's own ``migrate``.
"""

from __future__ import annotations

import abc
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

Migrate = Callable[[str], None]
"""Runs ``manage.py migrate`` on the database of a URL."""


class Database(abc.ABC):
    """One database; ``url`` is what ``DATABASE_URL`` says of it."""

    now: str
    """The database's clock in UTC."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: Any = None

    @abc.abstractmethod
    def connect(self) -> Any:
        """Return a connection of the driver, in autocommit."""

    @abc.abstractmethod
    def drop(self) -> None:
        """Remove the database, whoever is still connected."""

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that ``sql`` finds; with parameters, ``%s`` stands for each and ``%%`` for a percent sign."""
        return list(self._run(sql, parameters).fetchall())

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the single value that ``sql`` finds."""
        return self.query(sql, parameters)[0][0]

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run ``sql`` and return how many rows it changed."""
        return int(self._run(sql, parameters).rowcount)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def adapt(self, sql: str) -> str:
        """Return ``sql`` as the driver wants it."""
        return sql

    def _run(self, sql: str, parameters: Sequence[Any]) -> Any:
        if self._connection is None:
            self._connection = self.connect()
        try:
            cursor = self._connection.cursor()
            if parameters:
                cursor.execute(self.adapt(sql), tuple(parameters))
            else:
                cursor.execute(self.adapt(sql))
        except Exception:
            self.close()  # the server may have been restarted
            raise
        return cursor


class Server(abc.ABC):
    """Makes databases; the first one is migrated and kept as the pattern of the others."""

    def __init__(self, migrate: Migrate) -> None:
        self._migrate = migrate
        self._pattern: Database | None = None

    def create(self) -> Database:
        """Return a fresh migrated database."""
        if self._pattern is None:
            pattern = self.make(f"acceptance_{uuid.uuid4().hex[:12]}")
            try:
                self._migrate(pattern.url)
            except BaseException:
                pattern.drop()
                raise
            self._pattern = pattern
        copy = f"acceptance_{uuid.uuid4().hex[:12]}"
        return self.copy(self._pattern, copy)

    def close(self) -> None:
        """Remove the pattern."""
        if self._pattern is not None:
            self._pattern.drop()

    @abc.abstractmethod
    def make(self, name: str) -> Database:
        """Create an empty database."""

    @abc.abstractmethod
    def copy(self, pattern: Database, name: str) -> Database:
        """Create a database with the tables of ``pattern``."""


# --- MariaDB and MySQL -------------------------------------------------------------------------------------------


class MariaDBDatabase(Database):
    """A database on a MariaDB or MySQL server."""

    now = "UTC_TIMESTAMP(6)"

    def connect(self) -> Any:
        import MySQLdb

        parts = urlsplit(self.url)
        return MySQLdb.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=_name(self),
            charset="utf8mb4",
            connect_timeout=5,
            autocommit=True,
        )

    def drop(self) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {_name(self)}")
        self.close()


class MariaDBServer(Server):
    """Makes databases next to the one of ``url``."""

    def __init__(self, url: str, migrate: Migrate) -> None:
        super().__init__(migrate)
        self._url = url

    def make(self, name: str) -> MariaDBDatabase:
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return MariaDBDatabase(_with_path(self._url, name))

    def copy(self, pattern: Database, name: str) -> MariaDBDatabase:
        copy = self.make(name)
        copy.execute("SET SESSION foreign_key_checks = 0")
        for (table,) in pattern.query("SHOW TABLES"):
            copy.execute(pattern.query(f"SHOW CREATE TABLE {table}")[0][1])
        applied = f"{_name(pattern)}.django_migrations"
        copy.execute(f"INSERT INTO django_migrations SELECT * FROM {applied}")
        copy.close()
        pattern.close()
        return copy

    def _execute(self, sql: str) -> None:
        server = MariaDBDatabase(self._url)
        server.execute(sql)
        server.close()


# --- PostgreSQL --------------------------------------------------------------------------------------------------


class PostgreSQLDatabase(Database):
    """A database on a PostgreSQL server."""

    now = "CLOCK_TIMESTAMP()"

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    def drop(self) -> None:
        self.close()
        server = PostgreSQLDatabase(_with_path(self.url, "postgres"))
        server.execute(f"DROP DATABASE IF EXISTS {_name(self)} WITH (FORCE)")
        server.close()


class PostgreSQLServer(Server):
    """Makes databases next to the one of ``url``."""

    def __init__(self, url: str, migrate: Migrate) -> None:
        super().__init__(migrate)
        self._url = url

    def make(self, name: str) -> PostgreSQLDatabase:
        return self._create(name, "")

    def copy(self, pattern: Database, name: str) -> PostgreSQLDatabase:
        pattern.close()
        return self._create(name, f" TEMPLATE {_name(pattern)}")

    def _create(self, name: str, more: str) -> PostgreSQLDatabase:
        server = PostgreSQLDatabase(self._url)
        server.execute(f"CREATE DATABASE {name}{more}")
        server.close()
        return PostgreSQLDatabase(_with_path(self._url, name))


# --- SQLite ------------------------------------------------------------------------------------------------------


class SQLiteDatabase(Database):
    """A file."""

    now = "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')"

    @property
    def path(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def connect(self) -> Any:
        return sqlite3.connect(self.path, timeout=20, isolation_level=None)

    def adapt(self, sql: str) -> str:
        return sql.replace("%s", "?")

    def drop(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)


class SQLiteServer(Server):
    """Makes files in ``folder``."""

    def __init__(self, folder: Path, migrate: Migrate) -> None:
        super().__init__(migrate)
        self._folder = folder

    def make(self, name: str) -> SQLiteDatabase:
        return SQLiteDatabase(f"sqlite:///{self._folder / name}.sqlite3")

    def copy(self, pattern: Database, name: str) -> SQLiteDatabase:
        copy = self.make(name)
        copy.execute("PRAGMA journal_mode=WAL")
        with sqlite3.connect(pattern.url.removeprefix("sqlite:///")) as source:
            target = copy.connect()
            source.backup(target)
            target.close()
        copy.close()
        return copy


def _name(database: Database) -> str:
    """Return the name that the server knows the database by."""
    return urlsplit(database.url).path.lstrip("/")


def _with_path(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
