"""The servers in containers, where a Docker engine runs: a compose project of its own beside the developer's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from scripts.services import ports
from scripts.services.catalog import MARIADB, MYSQL, PASSWORD, USER
from scripts.services.errors import ServicesError
from scripts.services.server import Server
from scripts.services.state import CHECKOUT, State

COMPOSE_FILE = CHECKOUT / "compose.yaml"
_ROOT_PASSWORD = "smartflow-root"
_CLIENTS = {MARIADB.name: "mariadb", MYSQL.name: "mysql"}


def engine_answers() -> bool:
    """Say whether a Docker engine with compose is at hand."""
    if shutil.which("docker") is None:
        return False
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            result = subprocess.run(command, capture_output=True, timeout=15, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        if result.returncode != 0:
            return False
    return True


class ComposeServer(Server):
    """A server that `docker compose` runs."""

    @property
    def managed(self) -> bool:
        return True

    @property
    def address(self) -> str | None:
        return self.state.address

    def install(self) -> None:
        """Nothing to get: compose fetches the images."""

    def up(self) -> None:
        with self.state.locked():
            known = self.state.ports
            if not known:
                chosen = {purpose: ports.pick(port) for purpose, port in self.service.ports.items()}
                self.state.remember(ports=chosen, backend="docker")
            self._compose("up", "--detach", "--wait", self.service.compose_service)
            if client := _CLIENTS.get(self.service.name):
                self._grant_all(client)

    def start(self) -> None:
        with self.state.locked():
            self._compose("up", "--detach", "--wait", "--no-recreate", self.service.compose_service)

    def stop(self) -> None:
        with self.state.locked():
            self._compose("stop", self.service.compose_service)

    def kill(self) -> None:
        with self.state.locked():
            self._compose("kill", self.service.compose_service)

    def pause(self) -> None:
        self._compose("pause", self.service.compose_service)

    def resume(self) -> None:
        self._compose("unpause", self.service.compose_service)

    def status(self) -> str:
        found = self._compose("ps", "--all", "--format", "{{.Status}}", self.service.compose_service).strip()
        return f"{found or 'no container'} (docker compose), {self.address}"

    def remove(self) -> None:
        """Remove the container and its data."""
        self._compose("rm", "--stop", "--force", "--volumes", self.service.compose_service)

    def _grant_all(self, client: str) -> None:
        """Let the user make the tests' databases; the image's own user has rights on one database only."""
        statement = f"GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION"
        command = [client, "--user=root", f"--password={_ROOT_PASSWORD}", f"--execute={statement}"]
        self._compose("exec", "-T", self.service.compose_service, *command)

    def _compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--project-name", _project(self.state), "--file", str(COMPOSE_FILE)]
        command += ["--profile", "test", *arguments]
        environment = {
            **os.environ,
            "MARIADB_PASSWORD": PASSWORD,
            "MARIADB_ROOT_PASSWORD": _ROOT_PASSWORD,
            "MYSQL_PASSWORD": PASSWORD,
            "MYSQL_ROOT_PASSWORD": _ROOT_PASSWORD,
            "POSTGRES_PASSWORD": PASSWORD,
        }
        if port := self.state.ports.get("client"):
            environment[self.service.compose_variable] = str(port)
        return _run(command, environment)


def _project(state: State) -> str:
    """Name the compose project after the checkout, as the state's folder is."""
    return "".join(letter for letter in state.root.name.lower() if letter.isalnum() or letter in "-_").strip("-_")


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ServicesError(f"`{' '.join(command)}` failed with code {result.returncode}:\n{result.stderr[-3000:]}")
    return result.stdout
