"""PostgreSQL from the system's packages, in a cluster of our own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from scripts.services.catalog import DATABASE, PASSWORD, USER
from scripts.services.errors import NotReadyError, ServicesError
from scripts.services.ports import LOOPBACK
from scripts.services.process import user_to_run_as
from scripts.services.server import NativeServer
from scripts.services.state import write_atomically

_VERSIONS = Path("/usr/lib/postgresql")


class Postgres(NativeServer):
    """One PostgreSQL run by hand."""

    package_group: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    """SIGTERM would wait for all clients to leave by themselves."""

    def install(self) -> None:
        if _find("postgres") is None:
            super().install()

    @property
    def user(self) -> str | None:
        found = user_to_run_as("postgres", "nobody")
        return found.pw_name if found else None

    def set_up(self) -> None:
        entry = user_to_run_as("postgres", "nobody")
        uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (None, None)
        data = self.state.subfolder("data", uid=uid, gid=gid)
        if not self.state.remembered().get("installed"):
            self._install_data(data)

    def command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [_require("postgres"), "-D", str(self.state.folder / "data"), *options]

    def is_ready(self) -> bool:
        return self._ask("postgres", "SELECT 1") == "1"

    def finish_set_up(self) -> None:
        exists = f"SELECT count(*) FROM pg_database WHERE datname = '{DATABASE}'"
        if self._ask("postgres", exists) == "0" and self._ask("postgres", f"CREATE DATABASE {DATABASE}") is None:
            raise NotReadyError(f"Could not create the database {DATABASE}.", log=self.state.log)

    def _ask(self, database: str, statement: str) -> str | None:
        command = [_require("psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"]
        command += [f"--host={LOOPBACK}", f"--port={self.port}", f"--username={USER}", f"--dbname={database}"]
        command += [f"--command={statement}"]
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGCONNECT_TIMEOUT": "2"}
        try:
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    def _install_data(self, data: Path) -> None:
        for leftover in data.iterdir():  # of a try that did not come to its end
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        password = self._write_password()
        command = [_require("initdb"), "--pgdata", str(data), f"--username={USER}", f"--pwfile={password}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        log = self.state.folder / "install.log"
        with log.open("w") as output:
            result = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                cwd="/",
                check=False,
            )
        if result.returncode != 0:
            raise NotReadyError("initdb failed.", log=log)
        self.state.remember(installed=True)

    def _write_password(self) -> Path:
        path = self.state.folder / "password"
        write_atomically(path, f"{PASSWORD}\n")
        return path


def _find(program: str) -> str | None:
    """Find a program of the newest installed version; Debian keeps most of them off the path."""
    installed = sorted(_VERSIONS.glob("*/bin"), key=_version, reverse=True)
    path = os.pathsep.join([*map(str, installed), os.environ.get("PATH", os.defpath)])
    return shutil.which(program, path=path)


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


def _require(program: str) -> str:
    if found := _find(program):
        return found
    raise ServicesError(f"There is no {program}; run `up postgres`, which installs it.")
