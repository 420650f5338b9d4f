"""Who runs which server: the environment, Docker, or ourselves."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from scripts.services import catalog, docker
from scripts.services.catalog import Service
from scripts.services.errors import ServicesError
from scripts.services.kafka import Kafka
from scripts.services.mariadb import MariaDB
from scripts.services.mysql import MySQL
from scripts.services.postgres import Postgres
from scripts.services.server import GivenServer, NativeServer, Server
from scripts.services.state import CHECKOUT, State, default_folder, write_atomically
from scripts.services.state import VARIABLE as FOLDER_VARIABLE

BACKEND_VARIABLE = "SMARTFLOW_SERVICES_BACKEND"

_NATIVE: dict[str, type[NativeServer]] = {
    "mariadb": MariaDB,
    "mysql": MySQL,
    "postgres": Postgres,
    "kafka": Kafka,
}


def server(name: str) -> Server:
    """Give the server of this name.

    A given address counts, unless it is the one that we ourselves handed out; then what is remembered from the last
    `up`; then Docker where it answers; then the system's packages.
    """
    service = catalog.find(name)
    state = State(service)
    given = os.environ.get(service.variable)
    if given and given != state.address:
        return GivenServer(service, state, address=given)
    backend = os.environ.get(BACKEND_VARIABLE) or state.backend
    if backend is None:
        backend = "docker" if docker.engine_answers() else "native"
    return _of_backend(backend, service, state)


def variables() -> dict[str, str]:
    """Give the variables of all servers that are given or have been set up."""
    found = {service.variable: server(name).address for name, service in catalog.SERVICES.items()}
    return {variable: address for variable, address in found.items() if address}


def environment_lines() -> list[str]:
    """Give the variables as a shell reads them."""
    return [f"{variable}={shlex.quote(address)}" for variable, address in variables().items()]


def environment_file() -> Path:
    """Give the file that tells shells and tests where the servers are.

    It lies in the checkout; for servers in a folder of somebody's choice it lies there, so that theirs and the
    checkout's own do not mix.
    """
    if os.environ.get(FOLDER_VARIABLE):
        return default_folder() / "services.env"
    return CHECKOUT / ".services.env"


def write_environment_file() -> None:
    """Write the environment file anew."""
    write_atomically(environment_file(), "".join(f"{line}\n" for line in environment_lines()))


def forget_if_empty() -> None:
    """Remove the environment file and the state's folder when no server is left."""
    if not variables():
        environment_file().unlink(missing_ok=True)
        if default_folder().is_dir() and not any(default_folder().iterdir()):
            default_folder().rmdir()


def _of_backend(backend: str, service: Service, state: State) -> Server:
    if backend == "native":
        return _NATIVE[service.name](service, state)
    if backend == "docker":
        return docker.ComposeServer(service, state)
    raise ServicesError(f"{BACKEND_VARIABLE} is {backend!r}; it can be native or docker.")
