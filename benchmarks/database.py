"""A database made anew for a measurement, on the MariaDB that `make services` started."""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import MySQLdb  # type: ignore[import-untyped]


def make_anew(name: str) -> str:
    """Drop the database ``name`` if it is there, make it, and return its URL."""
    url = _database_url(name)
    drop(url)
    connection = connect(_server_url())
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    finally:
        connection.close()
    return url


def drop(url: str) -> None:
    """Drop the database of ``url``; it gives its disk space back."""
    connection = connect(_server_url())
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {urlsplit(url).path.strip('/')}")
    finally:
        connection.close()


def kafka_servers() -> str:
    """Return the address of the project's own Kafka."""
    return _from_environment("SMARTFLOW_KAFKA_SERVERS")


def connect(url: str) -> Any:
    """Return a connection by the bare driver; each statement commits by itself."""
    parts = urlsplit(url)
    connection = MySQLdb.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        passwd=unquote(parts.password or ""),
        db=parts.path.strip("/"),
        charset="utf8mb4",
    )
    connection.autocommit(True)
    return connection


def _server_url() -> str:
    return urlunsplit(urlsplit(_from_environment("SMARTFLOW_MARIADB_URL"))._replace(path="/"))


def _database_url(name: str) -> str:
    return urlunsplit(urlsplit(_from_environment("SMARTFLOW_MARIADB_URL"))._replace(path=f"/{name}"))


def _from_environment(name: str) -> str:
    if name not in os.environ:
        sys.exit(f"{name} is not set; `make bench` and `make limits` start the servers and set it")
    return os.environ[name]
