"""A program in Go that shares a service's table and topic with the project: it is built once a run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

from tests.acceptance.harness import Installation
from tests.acceptance.topics import remove_topics
from tests.acceptance.workers import Worker
from tests.services import CHECKOUT, in_ci

SOURCE = CHECKOUT / "tests" / "acceptance" / "go_peer"
TABLE = "shared_outbox_messages"
UTC_SESSION = "loc=UTC&time_zone=%27%2B00%3A00%27"
"""As docs/shared-tables.md has it."""
_BUILD_TIMEOUT_S = 280


def build(folder: Path) -> Path:
    """Return the program, built; skip the test where Go or its modules cannot be had, fail it in CI."""
    go = shutil.which("go")
    if go is None:
        _not_to_be_had("Go is not installed (Debian: apt-get install golang-go)")
    fetched = _go(go, "mod", "download")
    if fetched.returncode != 0:
        _not_to_be_had(f"the modules of the Go program cannot be fetched:\n{fetched.stderr}")
    program = folder / "gopeer"
    built = _go(go, "build", "-o", str(program), ".")
    assert built.returncode == 0, f"the Go program does not build:\n{built.stdout}{built.stderr}"
    return program


def _go(go: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    return subprocess.run(
        [go, *arguments],
        cwd=SOURCE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILD_TIMEOUT_S,
    )


def _not_to_be_had(reason: str) -> NoReturn:
    raise pytest.fail.Exception(reason, pytrace=False) if in_ci() else pytest.skip.Exception(reason)


class SharedInstallation(Installation):
    """The project with the service `shared`, whose table the Go program may have made."""

    @property
    def env(self) -> dict[str, str]:
        environment = Installation.env.fget(self)  # type: ignore[attr-defined]
        outbox = json.loads(environment["OUTBOX"])
        outbox["SERVICES"] = {"shared": {"TOPIC": self.topic("shared"), "GROUP": self.group("shared")}}
        return {
            **environment,
            "OUTBOX": json.dumps(outbox),
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.shared.settings",
        }

    def start_publishing(self, *, first: int, count: int, keys: int = 5, filler: int = 10) -> Worker:
        """Have the project publish events ``first`` and so on, each in a transaction of its own."""
        arguments = [str(each) for each in (first, count, keys, filler)]
        return self._start("publisher", ["-m", "tests.acceptance.shared.publisher", *arguments])

    def made(self) -> list[tuple[int, str, int, int, str]]:
        """Return (outbox id, key, n, length of the filler, by whom) of the effects, in the order of their making."""
        return [
            (row[0], row[1], row[2], row[3], row[4])
            for row in self.database.query(
                "SELECT outbox_id, message_key, n, filler_length, made_by FROM shared_effects ORDER BY id"
            )
        ]

    def dispose(self) -> None:
        try:
            Installation.dispose(self)
        finally:
            assert self.kafka is not None
            remove_topics(self.kafka, topics=[self.topic("shared")], groups=[self.group("shared")])


class GoPeer:
    """Runs the Go program on an installation's table and topic."""

    def __init__(self, program: Path, installation: SharedInstallation) -> None:
        self._program = program
        self._installation = installation
        self._numbers = itertools.count()

    def run(self, *arguments: object, session: str = UTC_SESSION) -> None:
        """Run a command of it to its end."""
        self.start(*arguments, session=session).wait(timeout_s=60)

    def write(self, *, first: int, count: int, keys: int = 5, filler: int = 10, session: str = UTC_SESSION) -> None:
        """Have it write events ``first`` and so on, each in a transaction of its own."""
        self.run("write", first, count, keys, filler, session=session)

    def start(self, *arguments: object, session: str = UTC_SESSION) -> Worker:
        """Start a command of it."""
        installation = self._installation
        assert installation.kafka is not None
        name = f"go-{arguments[0]}"
        worker = Worker(
            name,
            [str(each) for each in arguments],
            program=str(self._program),
            env={
                **os.environ,
                "DSN": f"{_dsn(installation.database.url)}?parseTime=true&charset=utf8mb4&{session}",
                "TABLE": TABLE,
                "SERVICE": "shared",
                "KAFKA": installation.kafka,
                "TOPIC": installation.topic("shared"),
                "GROUP": installation.group("shared"),
            },
            log=installation.folder / f"go-{next(self._numbers):02d}-{arguments[0]}.log",
        )
        installation.workers.append(worker)
        return worker


def _dsn(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.username}:{parts.password or ''}@tcp({parts.hostname}:{parts.port or 3306}){parts.path}"


def documented_sql(*names: str, service: str, is_mariadb: bool) -> Iterator[str]:
    """Return the statements of docs/shared-tables.md under ``-- adopt: name``, for ``service`` and the server."""
    text = (CHECKOUT / "docs" / "shared-tables.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```sql\n-- ")[1:]]
    by_name: dict[str, str] = dict(_named(block) for block in blocks)
    for name in names:
        script = by_name[name].replace("agent_outbox", f"{service}_outbox").replace("agent_ob_", f"{service}_ob_")
        script = script.replace("utf8mb4_0900_bin", "utf8mb4_nopad_bin") if is_mariadb else script
        yield from filter(None, map(str.strip, script.split(";")))


def _named(block: str) -> Sequence[str]:
    name, _, script = block.partition("\n")
    return name.removeprefix("adopt: "), script
