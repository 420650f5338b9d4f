"""Where a demo plays: its folder, its database, its broker, and the environment of its processes."""

from __future__ import annotations

import enum
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from scripts.demo.errors import DemoError

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = CHECKOUT / "build" / "demo"
DEFAULT_DATABASE = "smartflow_demo"
SERVICE = "agent"
"""The service of the story; what users do beside it goes to all of them."""
SERVICES = ("agent", "task", "memory", "active-scheduler", "notification")

_MARIADB, _KAFKA = "SMARTFLOW_MARIADB_URL", "SMARTFLOW_KAFKA_SERVERS"
_OF_THE_PROJECT = frozenset(
    {"ALLOWED_HOSTS", "BEHIND_PROXY", "CSRF_TRUSTED_ORIGINS", "DATABASE_URL", "DEBUG", "HTTPS", "LOG_LEVEL"}
    | {"MEMORY_ENABLED", "OUTBOX", "PREVIEW_BUILDER", "SECRET_KEY", "SHARED_TABLE", "STATIC_ROOT", "TIME_ZONE"}
)
_PREFIXES_OF_THE_PROJECT = ("KAFKA_", "NOTIFICATION_", "SECURE_")
"""What ``smartflow.settings`` reads from the environment."""


class Kind(enum.StrEnum):
    """What the demo runs on."""

    EMBEDDED = "embedded"
    """SQLite and the table broker: nothing to install."""
    KAFKA = "kafka"
    """MariaDB (or MySQL) and Kafka, as it is run for real."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One demo's place. ``namespace`` is the first word of its topics and groups, new for each demo."""

    folder: Path
    kind: Kind
    namespace: str
    database: str = DEFAULT_DATABASE
    python: str = sys.executable

    @property
    def database_url(self) -> str:
        if self.kind is Kind.KAFKA:
            return urlunsplit(urlsplit(server_address(_MARIADB))._replace(path=f"/{quote(self.database)}"))
        return f"sqlite:///{quote(str(self.folder / 'demo.sqlite3'))}"

    @property
    def broker_address(self) -> str:
        return server_address(_KAFKA) if self.kind is Kind.KAFKA else ""

    @property
    def description(self) -> str:
        return "MariaDB and Kafka" if self.kind is Kind.KAFKA else "SQLite and the table broker"

    def environment(self, *, debug: bool = False) -> dict[str, str]:
        """Return the environment of a process of this demo: what a developer has set for the project is left out."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _OF_THE_PROJECT and not name.startswith(_PREFIXES_OF_THE_PROJECT)
        }
        ours = {
            "DJANGO_SETTINGS_MODULE": "scripts.demo.settings",
            "READ_DOT_ENV": "false",
            "SECRET_KEY": secrets.token_urlsafe(48),
            "DEBUG": "true" if debug else "false",
            "DATABASE_URL": self.database_url,
            "OUTBOX": json.dumps({"NAMESPACE": self.namespace}),
            "PYTHONUNBUFFERED": "1",
        }
        if self.broker_address:
            ours["KAFKA_BOOTSTRAP_SERVERS"] = self.broker_address
        return kept | ours

    def clear(self) -> None:
        """Remove what an earlier demo left in the folder; the lock that is held stays."""
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remember(self) -> None:
        """Write down what `--serve` has to know; no address and no password is among it."""
        known = {"kind": self.kind, "namespace": self.namespace, "database": self.database, "python": self.python}
        (self.folder / _LAST).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


_LOCK, _LAST = "lock", "last.json"


def new_namespace() -> str:
    """Return a name that no earlier demo had, so that its topics and groups are new."""
    return f"smartflow-demo-{secrets.token_hex(4)}"


def last_stage(folder: Path) -> Stage | None:
    """Return where the last demo in ``folder`` played; None when there was none."""
    try:
        known = json.loads((folder / _LAST).read_text(encoding="utf-8"))
        return Stage(**{**known, "kind": Kind(known["kind"]), "folder": folder})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DemoError(f"{folder / _LAST} is unreadable ({error}); remove it and run the demo again.") from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one demo at a time use ``folder``.

    :raises DemoError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo or `make run` is using {folder}; stop it first.") from None
        yield


def server_address(variable: str) -> str:
    """Return a server's address from the environment, or from what `make services` wrote down.

    :raises DemoError: neither says where it is.
    """
    address = os.environ.get(variable) or _written_down().get(variable)
    if not address:
        raise DemoError(f"{variable} is not set: run `make services`, or set it to a server of your own.")
    return address


def _written_down() -> Mapping[str, str]:
    try:
        lines = (CHECKOUT / ".services.env").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
