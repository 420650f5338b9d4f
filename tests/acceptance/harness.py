"""An installation of the project for one test: own database, own topics, real processes.

The test's process looks at the database by the bare driver; whatever the project does happens in processes of its own,
which write into log files that are shown when a test fails.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.acceptance.databases import Database
from tests.acceptance.plans import Journal, Plan, read_journal
from tests.acceptance.probe import brokers, trace
from tests.acceptance.promises import (
    EffectRow,
    Row,
    check_business,
    check_delivery,
    check_effects,
    unexpected_tracebacks,
)
from tests.acceptance.topics import remove_topics
from tests.acceptance.workers import JSON, Conversation, Publisher, Worker, project_environment
from tests.services import CHECKOUT
from tests.waiting import wait_until

C = TypeVar("C", bound=Conversation)

HOLDING_KAFKA = "tests.acceptance.probe.brokers.HoldingKafkaBroker"
DONE_TIMEOUT_S = 150.0


@dataclass(slots=True)
class Installation:
    """One test's project."""

    database: Database
    kafka: str | None
    """The Kafka servers; None is the embedded broker."""
    folder: Path
    options: JSON = field(default_factory=dict)
    """``OUTBOX`` beyond what is set here."""
    broker_options: JSON = field(default_factory=dict)
    backend: str = "kafka"
    journal: Journal = field(default_factory=Journal)
    workers: list[Worker] = field(default_factory=list)
    _name: str = field(default_factory=lambda: f"acceptance-{uuid.uuid4().hex[:12]}")
    _loads: list[Path] = field(default_factory=list)
    _log_numbers: Iterator[int] = field(default_factory=itertools.count)
    """Processes may be started by several threads at once."""

    # --- names and settings --------------------------------------------------------------------------------------

    def topic(self, service: str = "probe") -> str:
        return f"{self._name}.{service}"

    def group(self, service: str = "probe") -> str:
        return f"{self._name}-{service}-consumer"

    @property
    def trace_path(self) -> Path:
        return self.folder / "trace.log"

    @property
    def env(self) -> dict[str, str]:
        services = {name: {"TOPIC": self.topic(name), "GROUP": self.group(name)} for name in ("agent", "probe")}
        outbox: JSON = {"NAMESPACE": "smartflow", "SERVICES": services, "RETRY_BASE_SECONDS": 0.2, **self.options}
        more = {trace.VARIABLE: str(self.trace_path), brokers.VARIABLE: str(self.folder)}
        if self.kafka is not None:
            broker_options = {"bootstrap_servers": self.kafka, "partitions": 3, **self.broker_options}
            outbox["BROKER"] = {"BACKEND": self.backend, "OPTIONS": broker_options}
            more["KAFKA_BOOTSTRAP_SERVERS"] = self.kafka
        return project_environment(self.database.url, OUTBOX=json.dumps(outbox), **more)

    # --- processes -----------------------------------------------------------------------------------------------

    def relay(
        self,
        service: str = "probe",
        *arguments: str,
        also: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Worker:
        """Start a relay, ``also`` of other services, with ``env`` beside what all have."""
        return self._manage("relay", "run_relay", service, *also, "--create-topics", *arguments, env=env)

    def consumer(self, service: str = "probe", *arguments: str, env: Mapping[str, str] | None = None) -> Worker:
        """Start a consumer, with ``env`` beside what all have."""
        return self._manage("consumer", "consume", "--create-topics", service, *arguments, env=env)

    def publisher(self) -> Publisher:
        """Start a process that publishes what the test says."""
        publisher = Publisher(env=self.env, log=self._log("publisher"), journal=self.journal)
        self.workers.append(publisher)
        return publisher

    def converse(self, kind: type[C], name: str, module: str) -> C:
        """Start a process of a module of the tests that answers what it is asked."""
        process = kind(name, ["-m", module], env=self.env, log=self._log(name))
        self.workers.append(process)
        return process

    def publish(self, *events: tuple[str, JSON]) -> list[str]:
        """Publish events (kind, fields) in one transaction; return their event ids."""
        publisher = self.publisher()
        event_ids = publisher.publish(*events)
        publisher.dispose()
        self.workers.remove(publisher)
        return event_ids

    def start_load(self, plan: Plan) -> Worker:
        """Start a process that publishes by a plan; its journal counts for the checks."""
        journal = self.folder / f"journal-{len(self._loads)}.jsonl"
        self._loads.append(journal)
        arguments = ["-m", "tests.acceptance.publisher", "load", msgspec.json.encode(plan).decode(), str(journal)]
        return self._start(f"load {plan.prefix}", arguments)

    def load(self, *plans: Plan, timeout_s: float = 60.0) -> None:
        """Work off plans, each in a process of its own, at the same time."""
        loads = [self.start_load(plan) for plan in plans]
        for load in loads:
            load.wait(timeout_s=timeout_s)

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=CHECKOUT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def _manage(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Worker:
        return self._start(name, ["manage.py", *arguments], env=env)

    def _start(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> Worker:
        log = self._log(name.split(maxsplit=1)[0])
        worker = Worker(name, arguments, env={**self.env, **(env or {})}, log=log)
        self.workers.append(worker)
        return worker

    def _log(self, name: str) -> Path:
        return self.folder / f"{next(self._log_numbers):02d}-{name}.log"

    # --- holding workers at a point ------------------------------------------------------------------------------

    def hold(self, point: str) -> None:
        """Have workers stay at ``marks`` or ``offsets`` when they come there (with the backend that can)."""
        (self.folder / f"hold-{point}").touch()

    def release(self, point: str) -> None:
        """Let them go on."""
        (self.folder / f"hold-{point}").unlink()
        (self.folder / f"held-{point}").unlink(missing_ok=True)

    def wait_held(self, point: str) -> None:
        """Wait until a worker is held at ``point``."""
        self.wait((self.folder / f"held-{point}").exists, f"no worker came to the point {point!r}")

    # --- looking -------------------------------------------------------------------------------------------------

    def rows(self, service: str = "probe") -> list[Row]:
        """Return the service's outbox rows in id order."""
        found = self.database.query(
            "SELECT id, event_type, message_key, status, retry_count, last_error, payload"
            f" FROM {service}_outbox_messages ORDER BY id"
        )
        return [
            Row(
                id=row_id,
                event_id=_event_id(payload) or str(row_id),
                event_type=event_type,
                key=key,
                status=status,
                retry_count=retry_count,
                last_error=last_error,
            )
            for row_id, event_type, key, status, retry_count, last_error, payload in found
        ]

    def row(self, event_id: str, service: str = "probe") -> Row:
        """Return the row of one event."""
        return next(row for row in self.rows(service) if row.event_id == event_id)

    def statuses(self, service: str = "probe") -> Counter[str]:
        """Count the service's rows by status."""
        found = self.database.query(f"SELECT status, COUNT(*) FROM {service}_outbox_messages GROUP BY status")
        return Counter(dict(found))

    def effects(self) -> list[EffectRow]:
        """Return the effects in the order in which they were made."""
        return [
            EffectRow(*row)
            for row in self.database.query(
                "SELECT outbox_id, event_id, message_key, n, attempt, worker_pid FROM probe_effects ORDER BY id"
            )
        ]

    def begun(self) -> list[trace.Mark]:
        """Return the handler runs that began, in order, rolled back or not."""
        return [mark for mark in trace.read(self.trace_path) if mark.what == "begin"]

    def rejected(self) -> list[tuple[bytes | None, str]]:
        """Return value and reason of the rejected records, in the order in which they were kept."""
        return self.database.query("SELECT value, reason FROM outbox_rejected_records ORDER BY id")

    # --- waiting -------------------------------------------------------------------------------------------------

    def wait(
        self,
        condition: Callable[[], Any],
        message: str,
        *,
        timeout_s: float = DONE_TIMEOUT_S,
        interval_s: float = 0.05,
        alive: Collection[Worker] = (),
    ) -> Any:
        """Wait for ``condition``; fail at once when one of ``alive`` ends."""

        def look() -> Any:
            for worker in alive:
                assert worker.is_alive, f"{worker.name} ended by itself, code {worker.exit_code}:\n{worker.text}"
            return condition()

        return wait_until(look, timeout=timeout_s, interval=interval_s, message=message)

    def wait_until_at_work(self, *workers: Worker) -> None:
        """Wait until relays and consumers have come past their start."""

        def are_at_work() -> bool:
            return {worker.pid for worker in workers} <= {
                row[0] for row in self.database.query("SELECT pid FROM outbox_workers")
            }

        self.wait(are_at_work, "the workers started", alive=workers)

    def wait_until_done(
        self, *, service: str = "probe", timeout_s: float = DONE_TIMEOUT_S, alive: Collection[Worker] = ()
    ) -> None:
        """Wait until no row is unfinished."""

        def is_done() -> bool:
            statuses = self.statuses(service)
            return not statuses["pending"] and not statuses["published"]

        try:
            self.wait(is_done, "all events finished", timeout_s=timeout_s, alive=alive)
        except AssertionError as error:
            unfinished = [row for row in self.rows(service) if row.status in {"pending", "published"}]
            raise AssertionError(f"{error}; {len(unfinished)} unfinished rows: {unfinished[:5]}") from None

    # --- the promises --------------------------------------------------------------------------------------------

    def check(
        self, *, dead: Collection[str] = (), retried: Collection[str] = (), in_order: Collection[str] | None = None
    ) -> None:
        """Check promises 1 to 3 of the probe service, row by row; nothing may be on its way any more.

        ``dead`` are the event ids that must have died, ``retried`` those that may have lost attempts. ``in_order``
        names the keys whose order is checked (None: all).
        """
        rows = self.rows()
        check_delivery(rows, self.read_journals(), dead=dead, retried=retried)
        check_business(rows, {row[0] for row in self.database.query("SELECT event_id FROM probe_business_rows")})
        check_effects(rows, self.effects(), in_order=in_order)
        for worker in self.workers:
            assert not unexpected_tracebacks(worker.text), f"{worker.name} wrote:\n{worker.text}"

    def read_journals(self) -> Journal:
        """Take in what the loads wrote down, and return what is known of all events."""
        for path in self._loads:
            self.journal.add(read_journal(path))
        return self.journal

    # --- the end -------------------------------------------------------------------------------------------------

    def dispose(self) -> None:
        """End all processes, and remove the topics, the groups and the database."""
        with ExitStack() as stack:  # the last is done first, and each whatever becomes of the others
            stack.callback(self.database.drop)
            if self.kafka is not None:
                topics = [self.topic(name) for name in ("agent", "probe")]
                groups = [self.group(name) for name in ("agent", "probe")]
                stack.callback(remove_topics, self.kafka, topics=topics, groups=groups)
            for worker in self.workers:
                stack.callback(worker.dispose)

    def logs(self) -> Iterator[tuple[str, str]]:
        """Return the name and the end of each log."""
        for path in sorted(self.folder.glob("*.log")):
            if path != self.trace_path:
                yield path.name, path.read_text(encoding="utf-8", errors="replace")[-6000:]


def _event_id(payload: str) -> str | None:
    """Return what the payload column says, if anything: plain SQL can write what is no envelope."""
    try:
        stored = json.loads(payload)
    except ValueError:
        return None
    return stored.get("event_id") if isinstance(stored, dict) else None
