"""An installation of the project's five services, each with a topic and group of its own, and workers to be watched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec

from tests.acceptance.harness import HOLDING_KAFKA, Installation
from tests.acceptance.probe import brokers
from tests.acceptance.services_publisher import Load
from tests.acceptance.topics import remove_topics
from tests.acceptance.watch import statements
from tests.acceptance.workers import Worker
from tests.conftest import SERVICES
from tests.waiting import wait_until

SETTINGS = "tests.acceptance.watch.settings"
SMALL_BATCHES = {
    "RELAY": {"BATCH_SIZE": 20},
    "CONSUMER": {"BATCH_SIZE": 20},
    "LEASES": {"TTL_SECONDS": 1.0, "HEARTBEAT_SECONDS": 0.3},
}

Role = Literal["relay", "consumer"]
Point = Literal["marks", "effects", "offsets"]
"""Where a worker can be held: a relay that has its acknowledgements and has not marked the rows; a consumer whose
handlers have written, before anything is committed; a consumer that has committed, before its offsets."""


def name_of(role: Role, service: str) -> str:
    """Return the name of a worker in logs and folders."""
    return f"{role}-{service}"


class Supervised(Worker):
    """``manage.py run_outbox``: a process with children, which end with it whatever happens."""

    _STOP_TIMEOUT_S = 40.0
    """The supervisor gives its children 30 s."""

    def children(self) -> dict[str, int]:
        """Return the process that was started last, by name."""
        return {
            name.strip(): int(pid) for name, pid in re.findall(r"(?m)^(.+?) \| started as process (\d+)$", self.text)
        }

    def kill_child(self, pid: int) -> None:
        """Kill a child as a power failure would."""
        assert pid in self.children().values()
        os.kill(pid, signal.SIGKILL)

    def dispose(self) -> None:
        if self.is_alive:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(self._STOP_TIMEOUT_S)
        if self.is_alive:
            # As long as it lives and does not look after its children, their ids are theirs.
            self.signal(signal.SIGSTOP)
            for pid in self.children().values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().dispose()


class ServicesInstallation(Installation):
    """One test's project with all its services.

    It lives on the database and in the folder of ``base``, which ends its processes and shows their logs.
    """

    def __init__(self, base: Installation, *, environment: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(
            database=base.database,
            kafka=base.kafka,
            folder=base.folder,
            workers=base.workers,
            backend=HOLDING_KAFKA,
            **more,
        )
        self._environment = dict(environment or {})
        self._numbers = count()

    @property
    def env(self) -> dict[str, str]:
        environment = super().env
        outbox = json.loads(environment["OUTBOX"])
        outbox["SERVICES"] = {name: {"TOPIC": self.topic(name), "GROUP": self.group(name)} for name in SERVICES}
        return {
            **environment,
            "OUTBOX": json.dumps(outbox),
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            statements.VARIABLE: str(self.folder),
            **self._environment,
        }

    # --- processes -----------------------------------------------------------------------------------------------

    def relay(self, service: str = "agent", *arguments: str) -> Worker:
        return self._manage(name_of("relay", service), "run_relay", service, "--create-topics", *arguments)

    def consumer(self, service: str = "agent", *arguments: str) -> Worker:
        return self._manage(name_of("consumer", service), "consume", service, "--create-topics", *arguments)

    def manage(self, name: str, *arguments: str) -> Worker:
        """Start any command in the background."""
        return self._manage(name, *arguments)

    def supervisor(self, *services: str) -> Supervised:
        """Start ``manage.py run_outbox``."""
        arguments = ["manage.py", "run_outbox", *services, "--create-topics"]
        supervised = Supervised("supervisor", arguments, env=self.env, log=self._log("supervisor"))
        self.workers.append(supervised)
        return supervised

    def start_services_load(self, load: Load) -> Worker:
        """Start a process that publishes by ``load``; its journal counts for the checks."""
        number = next(self._numbers)
        journal = self.folder / f"journal-of-services-{number}.jsonl"
        self._loads.append(journal)
        arguments = [
            "-m",
            "tests.acceptance.services_publisher",
            "load",
            msgspec.json.encode(load).decode(),
            str(journal),
        ]
        return self._start(f"load-{number}", arguments)

    def publish_services_load(self, load: Load, *, timeout_s: float = 60.0) -> None:
        """Publish by ``load`` to its end."""
        self.start_services_load(load).wait(timeout_s=timeout_s)

    def set_webhooks(self, webhooks: Mapping[int, str]) -> None:
        """Give users a webhook each."""
        given = msgspec.json.encode({str(user): url for user, url in webhooks.items()}).decode()
        self._start("webhooks", ["-m", "tests.acceptance.services_publisher", "webhooks", given]).wait(timeout_s=60)

    def _start(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> Worker:
        folder = self._place(name)
        folder.mkdir(exist_ok=True)
        return super()._start(name, arguments, env={**(env or {}), brokers.VARIABLE: str(folder)})

    def _place(self, name: str) -> Path:
        """Return the folder of the points at which the workers of this name can be held."""
        return self.folder / f"at-{name}"

    # --- holding one worker at a point ---------------------------------------------------------------------------

    def hold_at(self, worker: Worker, point: Point) -> None:
        """Have ``worker`` stay at ``point``; return when it is there."""
        place = self._place(worker.name)
        (place / f"hold-{point}").touch()
        self.wait((place / f"held-{point}").exists, f"{worker.name} came to the point {point!r}", alive=[worker])

    def let_go(self, worker: Worker, point: Point) -> None:
        """Let the workers of this name go on; when the held one is dead, the next one does not stay there."""
        place = self._place(worker.name)
        (place / f"hold-{point}").unlink()
        (place / f"held-{point}").unlink(missing_ok=True)

    # --- looking -------------------------------------------------------------------------------------------------

    def rows(self, service: str = "agent") -> list[Any]:
        return super().rows(service.replace("-", "_"))

    def statuses(self, service: str = "agent") -> Any:
        return super().statuses(service.replace("-", "_"))

    def payloads(self, service: str, event_type: str) -> list[tuple[int, str, dict[str, Any]]]:
        """Return outbox id, event id and payload of each row of an event type, in the order of ids."""
        found = self.database.query(
            f"SELECT id, payload FROM {service.replace('-', '_')}_outbox_messages WHERE event_type = %s ORDER BY id",
            [event_type],
        )
        envelopes = [(row_id, json.loads(stored)) for row_id, stored in found]
        return [(row_id, envelope["event_id"], envelope["payload"]) for row_id, envelope in envelopes]

    def statements(self, worker: Worker) -> list[str]:
        """Return the distinct statements that a worker ran."""
        return statements.read(self.folder, worker.pid)

    def wait_until_all_done(self, *services: str, alive: Sequence[Worker] = ()) -> None:
        """Wait until no row of ``services`` (none named: of all) is unfinished.

        One service's handlers may publish for another, so all must be done at one look.
        """
        asked = services or SERVICES

        def unfinished() -> dict[str, Any]:
            found = {service: self.statuses(service) for service in asked}
            return {name: each for name, each in found.items() if each["pending"] or each["published"]}

        try:
            self.wait(lambda: not unfinished(), "all events finished", alive=alive)
        except AssertionError as error:
            raise AssertionError(f"{error}; unfinished: {unfinished()}") from None

    # --- the end -------------------------------------------------------------------------------------------------

    def dispose(self) -> None:
        """End all processes, and remove the topics and groups; the database is the base's to remove."""
        for worker in self.workers:
            worker.dispose()
        if self.kafka is not None:
            remove_topics(
                self.kafka,
                topics=[self.topic(name) for name in SERVICES],
                groups=[self.group(name) for name in SERVICES],
            )


def is_gone(pid: int) -> bool:
    """Say whether a process that is not our child has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_gone(pids: Sequence[int], *, timeout_s: float = 10.0) -> None:
    """Wait until none of ``pids`` is there."""
    wait_until(lambda: all(is_gone(pid) for pid in pids), timeout=timeout_s, message=f"processes {pids} ended")
