"""MariaDB from the system's packages, in a data folder of our own."""

from __future__ import annotations

import os
import pwd
import shutil
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

_LONGEST_SOCKET = 100
"""A socket's path has room for 107 bytes."""

_SETTINGS = """\
# Written anew at every start by scripts/services/mariadb.py. What is not said here is MariaDB's own default.
[mariadbd]
datadir = {data}
port = {port}
bind-address = {host}
socket = {socket}
pid-file = {run}/mariadbd.pid
tmpdir = {run}
init-file = {init}
skip-name-resolve

# The figures of docs/performance.md were measured with these two.
innodb_buffer_pool_size = 512M
innodb_log_file_size = 128M
"""

_INIT = f"""\
CREATE DATABASE IF NOT EXISTS `{DATABASE}` CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS '{USER}'@'localhost' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON *.* TO '{USER}'@'localhost' WITH GRANT OPTION;
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
"""
"""Run by the server at every start, before it lets clients in; each statement may be repeated."""


class MariaDB(NativeServer):
    """One MariaDB run by hand."""

    package_group: ClassVar[str] = "mariadb"

    def install(self) -> None:
        if _find("mariadbd") is None or _find("mariadb-install-db") is None or _find("mariadb") is None:
            super().install()

    @property
    def account(self) -> pwd.struct_passwd | None:
        """Whose the server is; None for ourselves."""
        return user_to_run_as("mysql", "nobody")

    @property
    def user(self) -> str | None:
        return self.account.pw_name if self.account else None

    @property
    def more_settings(self) -> str:
        """What follows in my.cnf; of two lines with one key the later counts."""
        return ""

    @property
    def more_login_options(self) -> Sequence[str]:
        """What else `mariadb` needs to log in."""
        return ()

    def set_up(self) -> None:
        entry = self.account
        uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (None, None)
        data = self.state.subfolder("data", uid=uid, gid=gid)
        run = self.state.subfolder("run", uid=uid, gid=gid)
        socket = run / "mariadb.sock"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET:
            raise ServicesError(f"{socket} is too long for a socket; set SMARTFLOW_SERVICES_DIR to a shorter folder.")
        init = self.state.folder / "init.sql"
        write_atomically(init, _INIT)
        settings = _SETTINGS.format(data=data, run=run, port=self.port, host=LOOPBACK, socket=socket, init=init)
        write_atomically(self._settings, settings + self.more_settings)
        if not self.state.remembered().get("installed"):
            self._install_data(data)

    def command(self) -> Sequence[str]:
        return [_require("mariadbd"), f"--defaults-file={self._settings}"]

    def is_ready(self) -> bool:
        """Log in as the tests do: a handshake alone comes before the user exists."""
        command = [_require("mariadb"), "--no-defaults", "--protocol=tcp", f"--host={LOOPBACK}", f"--port={self.port}"]
        command += [f"--user={USER}", "--connect-timeout=2", f"--database={DATABASE}", "--execute=SELECT 1"]
        command += self.more_login_options
        environment = {**os.environ, "MYSQL_PWD": PASSWORD}
        try:
            result = subprocess.run(command, env=environment, capture_output=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return False
        return result.returncode == 0

    @property
    def _settings(self) -> Path:
        return self.state.folder / "my.cnf"

    def _install_data(self, data: Path) -> None:
        for leftover in data.iterdir():  # of a try that did not come to its end
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        command = [
            _require("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
        ]
        if self.user:
            command.append(f"--user={self.user}")
        log = self.state.folder / "install.log"
        with log.open("w") as output:
            result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if result.returncode != 0:
            raise NotReadyError("mariadb-install-db failed.", log=log)
        self.state.remember(installed=True)


def _find(program: str) -> str | None:
    """Find a program, also where an ordinary user's path does not lead."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(program, path=path)


def _require(program: str) -> str:
    if found := _find(program):
        return found
    raise ServicesError(f"There is no {program}; run `up mariadb`, which installs it.")
