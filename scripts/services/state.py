"""What is remembered between two calls: folders, ports, who runs a server, which process it is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.services.catalog import Service
from scripts.services.errors import ServicesError

CHECKOUT = Path(__file__).resolve().parents[2]
VARIABLE = "SMARTFLOW_SERVICES_DIR"


def default_folder(checkout: Path = CHECKOUT) -> Path:
    """Give this checkout's folder.

    Outside of the checkout, because the servers' own users must be able to reach it; in /var/tmp, which survives
    a restart of the machine and is no memory file system.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given).resolve()
    digest = hashlib.sha256(str(checkout).encode()).hexdigest()[:12]
    return Path("/var/tmp") / f"smartflow-{os.getuid()}-{digest}"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class State:
    """One service's folder."""

    def __init__(self, service: Service, *, root: Path | None = None) -> None:
        """Point at the folder; make nothing yet."""
        self.service = service
        self.root = root or default_folder()
        self.folder = self.root / service.name

    @property
    def log(self) -> Path:
        """Where the server writes what it does."""
        return self.folder / "server.log"

    @property
    def process_file(self) -> Path:
        """Where the server's process is written down."""
        return self.folder / "process.json"

    def prepare(self) -> None:
        """Make the folders; refuse those of another user."""
        for folder in (self.root, self.folder):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ServicesError(f"{folder} is not a folder of this user; remove it or set {VARIABLE}.")
            folder.chmod(0o755)

    def subfolder(self, name: str, *, uid: int | None = None, gid: int | None = None) -> Path:
        """Make a private folder within, for the user that the server runs as."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if uid is not None and gid is not None:
            os.chown(folder, uid, gid)
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one caller at a time change the server."""
        self.prepare()
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def remembered(self) -> Mapping[str, Any]:
        """Give what `remember` wrote last, or nothing."""
        return read_json(self.folder / "state.json")

    def remember(self, **changes: object) -> None:
        """Write down the backend, the ports and what has been set up."""
        write_atomically(self.folder / "state.json", json.dumps({**self.remembered(), **changes}, indent=1) + "\n")

    def forget_ports(self) -> None:
        """Have no address any more, if there ever was one; the data stays."""
        if self.ports:
            self.remember(ports={})

    @property
    def ports(self) -> dict[str, int]:
        """The ports in use, by what they are for; empty before the first start."""
        return dict(self.remembered().get("ports", {}))

    @property
    def backend(self) -> str | None:
        """Who runs the server: `native`, `docker`, or nobody yet."""
        found = self.remembered().get("backend")
        return found if isinstance(found, str) else None

    @property
    def address(self) -> str | None:
        """The value for the service's variable, once ports are known."""
        return self.service.address_at(self.ports) if self.ports else None

    def remove(self) -> None:
        """Forget everything, the server's data included."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_json(path: Path) -> Mapping[str, Any]:
    """Give a JSON object from a file, or an empty one where there is none to be had."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
