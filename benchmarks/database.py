"""A database made anew for a measurement, on a server that `make services` started: MariaDB, or what was chosen."""

from __future__ import annotations

import os
import sys
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import MySQLdb  # type: ignore[import-untyped]

VARIABLES: Final = {"mariadb": "SMARTFLOW_MARIADB_URL", "mysql": "SMARTFLOW_MYSQL_URL"}
"""Which variable says where a server is."""
_CHOSEN: Final = "SMARTFLOW_BENCH_DATABASE_URL"


def choose(server: str) -> None:
    """Measure on ``server`` from now on, one of ``VARIABLES`` or a URL; processes that are started do so too."""
    os.environ[_CHOSEN] = _from_environment(VARIABLES[server]) if server in VARIABLES else server


def url_of(name: str) -> str:
    """Return the URL of the database ``name`` on the chosen server."""
    url = os.environ.get(_CHOSEN) or _from_environment(VARIABLES["mariadb"])
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def make_anew(name: str) -> str:
    """Drop the database ``name`` if it is there, make it, and return its URL."""
    url = url_of(name)
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


def version() -> str:
    """Return the version of the server, with its name."""
    connection = connect(_server_url())
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            found = str(cursor.fetchone()[0])
    finally:
        connection.close()
    return found if "MariaDB" in found else f"{found}-MySQL"


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
    return url_of("")


def _from_environment(name: str) -> str:
    if name not in os.environ:
        sys.exit(f"{name} is not set; `make bench` and `make limits` start the servers and set it")
    return os.environ[name]
