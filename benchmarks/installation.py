"""The project, installed for a measurement: a database and topics of its own, and the processes that it started."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.database import connect, drop, kafka_servers, make_anew
from benchmarks.processes import Process

SERVICES: Final = ("agent", "task", "memory", "active-scheduler", "notification")
_READ_BY_THE_PROJECT: Final = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_ENABLED", "OUTBOX", "LOG_LEVEL")


@dataclass(slots=True)
class Installation:
    """Starts processes of the project, and looks at the database by the bare driver."""

    name: str
    """Begins the names of its database, topics and groups."""
    url: str
    folder: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    processes: list[Process] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Further settings in ``OUTBOX`` for processes that are started from now on."""
    _started: int = 0

    def topic(self, service: str = "agent") -> str:
        return f"{self.name}.{self.run}.{service}"

    def group(self, service: str = "agent") -> str:
        return f"{self.name}-{self.run}-{service}"

    @property
    def env(self) -> Mapping[str, str]:
        """Return the environment of the project's processes: as in production, so without ``DEBUG``.

        ``DEBUG`` makes Django keep every statement, which costs time and memory.
        """
        services = {name: {"TOPIC": self.topic(name), "GROUP": self.group(name)} for name in SERVICES}
        outbox = {"SERVICES": services, **self.options}
        return {name: value for name, value in os.environ.items() if name not in _READ_BY_THE_PROJECT} | {
            "DATABASE_URL": self.url,
            "DEBUG": "false",
            "DJANGO_SETTINGS_MODULE": "smartflow.settings",
            "KAFKA_BOOTSTRAP_SERVERS": kafka_servers(),
            "MEMORY_ENABLED": "false",  # nobody consumes the memory service's events here
            "OUTBOX": json.dumps(outbox),
            "PYTHONUNBUFFERED": "1",
            "READ_DOT_ENV": "false",
            "SECRET_KEY": "for-measurements-only",
        }

    def start(self, name: str, *arguments: str) -> Process:
        """Start a Python process."""
        self._started += 1
        process = Process(name, arguments, env=self.env, log=self.folder / f"{self._started:03d}-{name}.log")
        self.processes.append(process)
        return process

    def manage(self, name: str, *arguments: str) -> Process:
        """Start a management command."""
        return self.start(name, "manage.py", *arguments)

    def writers(self, name: str, *arguments: str) -> Process:
        """Start a process that publishes."""
        return self.start(name, "-m", "benchmarks.writers", *arguments)

    def wait(self, condition: Callable[[], object], what: str, *, timeout_s: float, every_s: float = 0.05) -> None:
        """Wait for ``condition``.

        :raises RuntimeError: it did not come true in time, or a process ended with an error.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.look_after()
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {timeout_s:g} s: {what}")
            time.sleep(every_s)

    def look_after(self) -> None:
        """See to it that no process has failed.

        :raises RuntimeError: one has.
        """
        for process in self.processes:
            if not process.is_alive:
                process.wait(timeout_s=0)

    def dispose(self) -> None:
        """End every process."""
        for process in self.processes:
            process.dispose()

    def connect(self) -> Any:
        """Return a connection to the database; one belongs to one thread."""
        return connect(self.url)


@contextmanager
def installed(name: str, *, keep: bool, services: Sequence[str] = ("agent",)) -> Iterator[Installation]:
    """Give the project installed, with tables and topics; remove all of it at the end, the logs unless it failed.

    ``keep`` leaves database and logs for somebody who wants to look.
    """
    with ExitStack() as at_the_end:
        url = make_anew(f"smartflow_{name}")
        if not keep:
            at_the_end.callback(drop, url)
        installation = Installation(name, url, Path(tempfile.mkdtemp(prefix=f"smartflow-{name}-")))
        at_the_end.callback(_remove_topics, installation, services)
        at_the_end.callback(installation.dispose)
        try:
            installation.manage("migrate", "migrate", "--verbosity", "0").wait(timeout_s=300)
            installation.manage("topics", "outbox_topics", *services, "--create").wait(timeout_s=60)
            yield installation
        except BaseException:
            print(f"logs are in {installation.folder}", flush=True)
            raise
        if not keep:
            shutil.rmtree(installation.folder, ignore_errors=True)


def _remove_topics(installation: Installation, services: Sequence[str]) -> None:
    # Not at the top: a small harness is what the children's accounts rely on (processes.Ended).
    from kafka import KafkaAdminClient  # noqa: PLC0415
    from kafka.errors import KafkaError  # noqa: PLC0415

    try:
        admin = KafkaAdminClient(bootstrap_servers=kafka_servers().split(","))
        try:
            answer = admin.delete_topics([installation.topic(service) for service in services], raise_errors=False)
            for topic in answer["topics"]:
                if topic["error_code"]:
                    print(f"the topic {topic['name']} was left behind: {topic['error_message']}", flush=True)
            admin.delete_groups([installation.group(service) for service in services])
        finally:
            admin.close()
    except KafkaError as error:
        print(
            f"topics {installation.name}.{installation.run}.… or their groups may have been left behind: {error}",
            flush=True,
        )
