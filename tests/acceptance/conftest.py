"""Installations on real servers; everything that a test starts is ended and removed after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.databases import MariaDBServer, PostgreSQLServer, Server, SQLiteServer
from tests.acceptance.harness import Installation
from tests.acceptance.workers import migrate
from tests.services import require

Install = Callable[..., Installation]

ON_EACH_MYSQL = pytest.mark.parametrize("usual_database", ["mariadb", "mysql"], indirect=True)
"""For tests of installations as they are run for real."""

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember that a test failed, so that its logs are shown."""
    report: Any = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session")
def database_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Give the makers of databases by name; each is set up when it is first asked for."""
    servers: dict[str, Server] = {}

    def server(name: str) -> Server:
        if name not in servers:
            servers[name] = _server(name, tmp_path_factory)
        return servers[name]

    yield server
    with ExitStack() as stack:
        for each in servers.values():
            stack.callback(each.close)


def _server(name: str, tmp_path_factory: pytest.TempPathFactory) -> Server:
    if name in ("mariadb", "mysql"):
        return MariaDBServer(require(name), migrate)
    if name == "postgres":
        return PostgreSQLServer(require("postgres"), migrate)
    return SQLiteServer(tmp_path_factory.mktemp("sqlite"), migrate)


def show_when_failed(request: pytest.FixtureRequest, installations: Iterable[Installation]) -> None:
    """Print the logs of ``installations`` when the test has failed."""
    if request.node.stash.get(_FAILED, False):
        for installation in installations:
            for name, text in installation.logs():
                print(f"--- {name} ---\n{text}")


def end_all(request: pytest.FixtureRequest, installations: Iterable[Installation]) -> None:
    """Show what there is to see when the test has failed, and remove each, whatever becomes of the others."""
    show_when_failed(request, installations)
    with ExitStack() as stack:
        for installation in installations:
            stack.callback(installation.dispose)


@pytest.fixture
def usual_database(request: pytest.FixtureRequest) -> str:
    """Give the database that installations are on where a test says nothing else; see ``ON_EACH_MYSQL``."""
    return str(getattr(request, "param", "mariadb"))


@pytest.fixture
def install(
    request: pytest.FixtureRequest, tmp_path: Path, database_servers: Callable[[str], Server], usual_database: str
) -> Iterator[Install]:
    """Give a function that makes an installation: ``install(database="mariadb", broker="kafka", options={...})``."""
    made: list[Installation] = []

    def make(*, database: str = usual_database, broker: str = "kafka", **more: Any) -> Installation:
        kafka = require("kafka") if broker == "kafka" else None
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(
            Installation(database=database_servers(database).create(), kafka=kafka, folder=folder, **more),
        )
        return made[-1]

    yield make
    end_all(request, made)


@pytest.fixture
def installation(install: Install) -> Installation:
    """An installation as it is run for real: MariaDB or MySQL, and Kafka."""
    return install()
