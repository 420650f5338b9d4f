"""Fresh ground on real servers: an empty database, and no topics of earlier demos."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from scripts.demo.errors import DemoError
from scripts.demo.stage import SERVICES, Kind, Stage

_TIMEOUT_S = 10


def make_database(stage: Stage) -> None:
    """Make the demo's database anew; there is nothing to do for SQLite.

    :raises DemoError: the server is away or refuses.
    """
    if stage.kind is not Kind.KAFKA:
        return
    try:
        import MySQLdb  # type: ignore[import-untyped]  # noqa: PLC0415 - the embedded demo goes without it
    except ImportError as error:
        raise DemoError(f"mysqlclient is not installed in {stage.python}; use `make demo-kafka`.") from error

    url = urlsplit(stage.database_url)
    try:
        connection = MySQLdb.connect(
            host=url.hostname or "127.0.0.1",
            port=url.port or 3306,
            user=unquote(url.username or ""),
            password=unquote(url.password or ""),
            connect_timeout=_TIMEOUT_S,
        )
    except MySQLdb.Error as error:
        raise DemoError(f"no database server at {url.hostname}:{url.port or 3306}: {error}") from error
    name = stage.database.replace("`", "``")
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    except MySQLdb.Error as error:
        raise DemoError(f"the database {stage.database!r} cannot be made anew: {error}") from error
    finally:
        connection.close()


def remove_topics(stage: Stage | None) -> None:
    """Remove the topics of an earlier demo; one that cannot be removed does no harm."""
    if stage is None or stage.kind is not Kind.KAFKA:
        return
    from kafka import KafkaAdminClient  # noqa: PLC0415 - the embedded demo goes without it
    from kafka.errors import KafkaError  # noqa: PLC0415

    try:
        admin = KafkaAdminClient(bootstrap_servers=stage.broker_address, bootstrap_timeout_ms=_TIMEOUT_S * 1000)
        try:
            admin.delete_topics([f"{stage.namespace}.{service}.outbox" for service in SERVICES])
        finally:
            admin.close()
    except KafkaError as error:
        print(f"  (topics of the last demo are still there: {type(error).__name__})")
