"""MySQL from Debian's suite sid, unpacked beside the system's packages, in a data folder of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from scripts.services import mysql_packages
from scripts.services.catalog import DATABASE, PASSWORD, USER
from scripts.services.errors import NotReadyError, ServicesError
from scripts.services.ports import LOOPBACK
from scripts.services.server import NativeServer
from scripts.services.state import write_atomically

_LONGEST_SOCKET = 100
"""A socket's path has room for 107 bytes."""

_SETTINGS = """\
# Written anew at every start by scripts/services/mysql.py. What is not said here is MySQL's own default.
[mysqld]
{places}
port = {port}
bind-address = {host}
socket = {socket}
pid-file = {run}/mysqld.pid
init-file = {init}
mysqlx = OFF
skip-name-resolve

# MySQL keeps its binary logs for 30 days: tests wrote 2.3 GB of them. They are removed when the next one is begun,
# so each has to be small, too.
binlog_expire_logs_seconds = 60
max_binlog_size = 64M
"""

_INIT = f"""\
CREATE DATABASE IF NOT EXISTS `{DATABASE}`;
CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;
"""
"""Run by the server at every start, before it lets clients in; each statement may be repeated."""

_GREETING_VERSION = 10
"""The first byte of the server's greeting after the packet's header; 255 would be an error."""


class MySQL(NativeServer):
    """One MySQL run by hand."""

    package_group: ClassVar[str] = ""

    def install(self) -> None:
        mysql_packages.ensure()

    @property
    def more_settings(self) -> str:
        """What follows in my.cnf; of two lines with one key the later counts."""
        return ""

    def set_up(self) -> None:
        data, run = self.state.subfolder("data"), self.state.subfolder("run")
        socket_path = run / "mysql.sock"
        if len(os.fsencode(socket_path)) > _LONGEST_SOCKET:
            raise ServicesError(
                f"{socket_path} is too long for a socket; set SMARTFLOW_SERVICES_DIR to a shorter folder."
            )
        init = self.state.folder / "init.sql"
        write_atomically(init, _INIT)
        places = _places(mysql_packages.unpacked(), data=data, run=run)
        settings = _SETTINGS.format(
            places="\n".join(f"{name} = {value}" for name, value in places.items()),
            port=self.port,
            host=LOOPBACK,
            socket=socket_path,
            run=run,
            init=init,
        )
        write_atomically(self._settings, settings + self.more_settings)
        if not self.state.remembered().get("installed"):
            self._install_data(data, places)

    def command(self) -> Sequence[str]:
        return [*mysql_packages.program(mysql_packages.unpacked()), f"--defaults-file={self._settings}"]

    def is_ready(self) -> bool:
        """Read the greeting, which comes after the init file has been run: there is no client among the packages."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2) as connection:
                start = connection.recv(5, socket.MSG_WAITALL)
        except OSError:
            return False
        return len(start) == 5 and start[4] == _GREETING_VERSION

    @property
    def _settings(self) -> Path:
        return self.state.folder / "my.cnf"

    def _install_data(self, data: Path, places: Mapping[str, object]) -> None:
        for leftover in data.iterdir():  # of a try that did not come to its end
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        command = [*mysql_packages.program(mysql_packages.unpacked()), "--no-defaults", "--initialize-insecure"]
        command += [f"--{name}={value}" for name, value in places.items()]
        log = self.state.folder / "install.log"
        with log.open("w") as output:
            result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if result.returncode != 0:
            raise NotReadyError("mysqld --initialize-insecure failed.", log=log)
        self.state.remember(installed=True)


def _places(root: Path, *, data: Path, run: Path) -> Mapping[str, object]:
    """Give the settings without which an unpacked MySQL would look for its files where packages are installed."""
    places: dict[str, object] = {
        "basedir": root / "usr",
        "plugin-dir": root / "usr/lib/mysql/plugin",
        "lc-messages-dir": root / "usr/share/mysql",
        "character-sets-dir": root / "usr/share/mysql/charsets",
        "datadir": data,
        "tmpdir": run,
        "secure-file-priv": "NULL",
    }
    if os.getuid() == 0:
        # Like Kafka, not like MariaDB: the programs are in the user's own cache, where no other user can read them.
        places["user"] = "root"
    return places
