"""Processes of the project in the background: commands, and a publisher that does what the test says."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from tests.acceptance.plans import Journal
from tests.services import CHECKOUT

SETTINGS = "tests.acceptance.settings"
_STOP_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 30.0
_READ_BY_THE_PROJECT = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_ENABLED", "OUTBOX", "LOG_LEVEL")

JSON = dict[str, Any]


def project_environment(database_url: str, **more: str) -> dict[str, str]:
    """Return the environment of a process of the project; nothing of ours or of a ``.env`` shines through."""
    inherited = {name: value for name, value in os.environ.items() if name not in _READ_BY_THE_PROJECT}
    return {
        **inherited,
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        "PYTHONUNBUFFERED": "1",
        "READ_DOT_ENV": "false",
        "SECRET_KEY": "for-acceptance-tests-only",
        **more,
    }


def migrate(database_url: str) -> None:
    """Run the project's ``migrate``."""
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=project_environment(database_url), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"migrate failed:\n{done.stdout}{done.stderr}"


class Worker:
    """A process of the project, or of another ``program``, in the background."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        program: str = sys.executable,
        **pipes: Any,
    ) -> None:
        self.name, self.log = name, log
        self._file: IO[bytes] = log.open("ab")
        self._popen = subprocess.Popen(
            [program, *arguments],
            cwd=CHECKOUT,
            env=dict(env),
            **{"stdin": subprocess.DEVNULL, "stdout": self._file, "stderr": self._file, **pipes},
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Return how it ended, a signal as a negative number; None while it runs."""
        return self._popen.poll()

    @property
    def text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill9(self) -> None:
        """End it as a power failure would; return when it is gone."""
        assert self.is_alive, f"{self.name} had ended, code {self.exit_code}, before it was killed:\n{self.text}"
        self._popen.kill()
        self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def is_alive_after(self, *, seconds: float) -> bool:
        """Give it ``seconds`` to end by itself; say whether it has not."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self.is_alive

    def stop(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> float:
        """Ask it to end; it must do so with exit code 0 within ``timeout_s``. Return the seconds that it took."""
        assert self.is_alive, f"{self.name} had ended, code {self.exit_code}, before it was stopped:\n{self.text}"
        started = time.monotonic()
        self._popen.send_signal(signal.SIGTERM)
        self.wait(timeout_s=timeout_s)
        return time.monotonic() - started

    def wait(self, *, timeout_s: float) -> None:
        """Wait until it ends by itself, with exit code 0."""
        try:
            code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {timeout_s:g} s:\n{self.text}") from None
        assert code == 0, f"{self.name} ended with exit code {code}:\n{self.text}"

    def dispose(self) -> None:
        """End it whatever it does."""
        if self.is_alive:
            self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout, self._file):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class Conversation(Worker):
    """Does what a test says, a line of JSON at a time, and answers each with another."""

    def __init__(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        super().__init__(name, arguments, env=env, log=log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _ask(self, **command: Any) -> Any:
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(command) + b"\n")
        stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            assert selector.select(_ANSWER_TIMEOUT_S), f"the {self.name} does not answer {command}:\n{self.text}"
        answer = stdout.readline()
        assert answer, f"the {self.name} ended over {command}:\n{self.text}"
        return msgspec.json.decode(answer)


class Publisher(Conversation):
    """Publishes what a test says, one command after the other; a transaction may stay open in between."""

    def __init__(self, *, env: Mapping[str, str], log: Path, journal: Journal) -> None:
        super().__init__("publisher", ["-m", "tests.acceptance.publisher", "serve"], env=env, log=log)
        self._journal = journal
        self._uncommitted: list[str] | None = None

    def publish(self, *events: tuple[str, JSON]) -> list[str]:
        """Publish events (kind, fields) in one transaction, or in the one that is open; return their event ids."""
        event_ids: list[str] = self._ask(do="publish", events=events)
        if self._uncommitted is None:
            self._journal.committed.update(event_ids)
        else:
            self._uncommitted += event_ids
        return event_ids

    def begin(self) -> None:
        """Open a transaction."""
        self._uncommitted = []
        self._ask(do="begin")

    def commit(self) -> None:
        """Commit it."""
        self._ask(do="commit")
        self._journal.committed.update(self._uncommitted or ())
        self._uncommitted = None

    def rollback(self) -> None:
        """Roll it back."""
        self._ask(do="rollback")
        self._journal.rolled_back.update(self._uncommitted or ())
        self._uncommitted = None

    def replay(self, *ids: int, service: str = "probe") -> int:
        """Send dead rows again, as the admin does; return how many."""
        return int(self._ask(do="replay", service=service, ids=ids))

    def give_up(self, *ids: int, service: str = "probe") -> int:
        """Give dead rows up, as the admin does; return how many."""
        return int(self._ask(do="give_up", service=service, ids=ids))
