"""A database and a Kafka of the run's own, as their makers ship them, each behind a proxy for all but the observer."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from scripts.services import catalog, kafka_wire, ports
from scripts.services.kafka import NODE, Kafka
from scripts.services.mariadb import MariaDB
from scripts.services.mysql import MySQL
from scripts.services.server import NativeServer
from scripts.services.state import State
from tests.acceptance.databases import MariaDBDatabase, MariaDBServer
from tests.acceptance.workers import migrate
from tests.chaos.disks import TablesDisk
from tests.chaos.errors import ImpossibleError
from tests.chaos.proxy import Proxy

_PORT = 20_000 + 10 * (os.getpid() % 1000)
"""Where the search for free ports begins: another run must not find those of a server that is away for a moment."""

_KAFKA = dataclasses.replace(catalog.KAFKA, ports={"client": _PORT + 1, "controller": _PORT + 2})
_PROXY_PORTS = {"database": _PORT + 3, "kafka": _PORT + 4}

_SCHEMA = "chaos"

DATABASES: Mapping[str, tuple[catalog.Service, type[NativeServer]]] = {
    "mariadb": (dataclasses.replace(catalog.MARIADB, ports={"client": _PORT}), MariaDB),
    "mysql": (dataclasses.replace(catalog.MYSQL, ports={"client": _PORT}), MySQL),
}
"""What the database of a run may be."""


class ProxiedKafka(Kafka):
    """A Kafka that sends its clients to the proxy."""

    advertised_port = 0

    @property
    def more_settings(self) -> str:
        return f"advertised.listeners=CLIENT://{ports.LOOPBACK}:{self.advertised_port}\n"

    def is_ready(self) -> bool:
        try:
            return kafka_wire.ask(ports.LOOPBACK, self.port).serves(broker=NODE, port=self.advertised_port)
        except (OSError, kafka_wire.WireError):
            return False


class ProxiedDatabase(MariaDBDatabase):
    """A database whose ``url`` leads through the proxy, for the project, while we ourselves look past it."""

    def __init__(self, direct: MariaDBDatabase, *, port: int) -> None:
        super().__init__(_with_port(direct.url, port))
        self._direct = direct

    def connect(self) -> Any:
        return self._direct.connect()


class Servers:
    """Both servers and their proxies, by the names ``database`` and ``kafka``."""

    def __init__(self, root: Path, *, database: str, has_own_disk: bool = False) -> None:
        """``has_own_disk`` asks for a file system for the tables alone; where there can be none, it goes without."""
        kafka = ProxiedKafka(_KAFKA, State(_KAFKA, root=root))
        service, server = DATABASES[database]
        self.by_name: dict[str, NativeServer] = {
            "database": server(service, State(service, root=root)),
            "kafka": kafka,
        }
        self.is_mysql = database == "mysql"
        """Whether the database is MySQL itself."""
        self._proxy_ports = {name: ports.pick(port) for name, port in _PROXY_PORTS.items()}
        kafka.advertised_port = self._proxy_ports["kafka"]
        self.proxies: dict[str, Proxy] = {}
        self._direct: MariaDBDatabase | None = None
        self._has_own_disk = has_own_disk
        self._disk: TablesDisk | None = None
        self._no_disk = "the run began without it"

    def up(self) -> None:
        """Start everything, and make a database with the project's tables."""
        for server in self.by_name.values():
            server.install()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.up(), self.by_name.values()))
        for name, server in self.by_name.items():
            self.proxies[name] = Proxy(port=self._proxy_ports[name], target=server.port)
            self.proxies[name].start()
        self._direct = MariaDBServer(str(self.by_name["database"].address), migrate).make(_SCHEMA)
        if self._has_own_disk:
            self._mount_disk()
        migrate(self._direct.url)

    def _mount_disk(self) -> None:
        disk = TablesDisk(self.by_name["database"].state.folder / "data" / _SCHEMA)
        try:
            disk.mount()
        except ImpossibleError as error:
            self._no_disk = str(error)
            return
        self._disk = disk
        # MariaDB keeps a schema's character set in a file of the folder, which is hidden now.
        with closing(self.database()) as database:
            database.execute(f"ALTER DATABASE {_SCHEMA} CHARACTER SET utf8mb4")

    @property
    def disk(self) -> TablesDisk:
        """Return the file system of the tables.

        :raises ImpossibleError: they have none of their own.
        """
        if self._disk is None:
            raise ImpossibleError(self._no_disk)
        return self._disk

    @property
    def kafka_address(self) -> str:
        """Return what the project's processes use: the proxy."""
        return f"{ports.LOOPBACK}:{self._proxy_ports['kafka']}"

    def proxied_database(self) -> ProxiedDatabase:
        """Return the database for the project's processes. A connection of ours belongs to one thread."""
        return ProxiedDatabase(self.database(), port=self._proxy_ports["database"])

    def database(self) -> MariaDBDatabase:
        """Return the database past the proxy; a new object for each thread."""
        assert self._direct is not None, "the servers are not up"
        return MariaDBDatabase(self._direct.url)

    def heal(self) -> None:
        """Undo whatever was done to servers and connections; return when both serve."""
        if self._disk is not None:
            self._disk.free()
        for name, server in self.by_name.items():
            self.proxies[name].heal()
            if server.status().startswith("runs"):
                server.resume()
            server.start()

    def dispose(self, *, logs_to: Path) -> None:
        """End the servers and remove their data, but for their logs."""
        with ExitStack() as stack:
            for name, server in self.by_name.items():
                stack.callback(shutil.rmtree, server.state.folder, ignore_errors=True)
                if name == "database" and self._disk is not None:
                    stack.callback(self._disk.unmount)
                if server.state.log.exists():
                    stack.callback(shutil.copy, server.state.log, logs_to / f"server-{name}.log")
                stack.callback(server.kill)
            for proxy in self.proxies.values():
                stack.callback(proxy.stop)


def _with_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{credentials}@{parts.hostname}:{port}"))
