"""An installation of the project for one test: own database, own topics, real processes, and the checks of promises.

The test's process looks at the database by the bare driver; whatever the project does happens in processes of its own,
which write into log files that are shown when a test fails.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from tests.acceptance.databases import Database
from tests.acceptance.plans import Journal, Plan, read_journal
from tests.acceptance.probe import brokers, trace
from tests.services import CHECKOUT
from tests.waiting import wait_until

SETTINGS = "tests.acceptance.settings"
HOLDING_KAFKA = "tests.acceptance.probe.brokers.HoldingKafkaBroker"
DONE_TIMEOUT_S = 60.0
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
    """A process of the project, in the background."""

    def __init__(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str], log: Path, **pipes: Any) -> None:
        self.name, self.log = name, log
        self._file: IO[bytes] = log.open("ab")
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
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
    def text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill9(self) -> None:
        """End it as a power failure would; return when it is gone."""
        assert self.is_alive, f"{self.name} had ended by itself before it was to be killed:\n{self.text}"
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
        assert self.is_alive, f"{self.name} had ended by itself before it was to be stopped:\n{self.text}"
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


class Publisher(Worker):
    """Publishes what a test says, one command after the other; a transaction may stay open in between."""

    def __init__(self, *, env: Mapping[str, str], log: Path, journal: Journal) -> None:
        super().__init__(
            "publisher",
            ["-m", "tests.acceptance.publisher", "serve"],
            env=env,
            log=log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
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

    def _ask(self, **command: Any) -> Any:
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(command) + b"\n")
        stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            assert selector.select(_ANSWER_TIMEOUT_S), f"the publisher does not answer {command}:\n{self.text}"
        answer = stdout.readline()
        assert answer, f"the publisher ended over {command}:\n{self.text}"
        return msgspec.json.decode(answer)


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as a test sees it."""

    id: int
    event_id: str
    event_type: str
    key: str
    status: str
    retry_count: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What a handler of the probe service wrote; in the order in which they were written."""

    outbox_id: int
    event_id: str
    key: str
    n: int
    attempt: int
    worker_pid: int


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

    def relay(self, service: str = "probe", *arguments: str) -> Worker:
        """Start a relay."""
        return self._manage("relay", "run_relay", service, "--create-topics", *arguments)

    def consumer(self, service: str = "probe", *arguments: str) -> Worker:
        """Start a consumer."""
        return self._manage("consumer", "consume", service, "--create-topics", *arguments)

    def publisher(self) -> Publisher:
        """Start a process that publishes what the test says."""
        publisher = Publisher(env=self.env, log=self._log("publisher"), journal=self.journal)
        self.workers.append(publisher)
        return publisher

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

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=CHECKOUT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _manage(self, name: str, *arguments: str) -> Worker:
        return self._start(name, ["manage.py", *arguments])

    def _start(self, name: str, arguments: Sequence[str]) -> Worker:
        worker = Worker(name, arguments, env=self.env, log=self._log(name.split(maxsplit=1)[0]))
        self.workers.append(worker)
        return worker

    def _log(self, name: str) -> Path:
        return self.folder / f"{len(list(self.folder.glob('*.log'))):02d}-{name}.log"

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
                assert worker.is_alive, f"{worker.name} ended by itself:\n{worker.text}"
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


def unexpected_tracebacks(text: str) -> list[str]:
    """Return the log lines that a traceback follows, but for those that kafka-python writes when it closes."""
    lines = text.splitlines()
    said = [lines[number - 1] if number else "" for number, line in enumerate(lines) if line.startswith("Traceback")]
    return [line for line in said if " ERROR kafka." not in line]


def check_delivery(
    rows: Sequence[Row], journal: Journal, *, dead: Collection[str], retried: Collection[str] = ()
) -> None:
    """Check promise 1: what was committed is consumed or dead with a reason, and there is nothing else."""
    twice = [event_id for event_id, count in Counter(row.event_id for row in rows).items() if count > 1]
    assert not twice, f"events with two rows: {twice}"
    by_event = {row.event_id: row for row in rows}
    lost = journal.committed - by_event.keys()
    assert not lost, f"{len(lost)} committed events have no row: {sorted(lost)[:5]}"
    ghosts = journal.rolled_back & by_event.keys()
    assert not ghosts, f"{len(ghosts)} events of rolled-back transactions have a row: {sorted(ghosts)[:5]}"
    strangers = by_event.keys() - journal.committed - journal.unknown
    assert not strangers, f"{len(strangers)} rows that nobody published: {sorted(strangers)[:5]}"
    expected = {row.event_id: "dead" if row.event_id in dead else "consumed" for row in rows}
    wrong = [row for row in rows if row.status != expected[row.event_id]]
    assert not wrong, f"{len(wrong)} rows in the wrong status: {wrong[:5]}"
    silent = [row for row in rows if row.status == "dead" and not row.last_error]
    assert not silent, f"dead without a reason: {silent}"
    unharmed = [row for row in rows if row.event_id not in {*retried, *dead}]
    harmed = [row for row in unharmed if row.retry_count or row.last_error]
    assert not harmed, f"{len(harmed)} healthy events lost attempts: {harmed[:5]}"


def check_business(rows: Sequence[Row], business: Collection[str]) -> None:
    """Check that the rows published by the test processes and the business rows beside them are the same events."""
    events = {row.event_id for row in rows}
    missing = set(business) - events
    assert not missing, f"business rows without their event: {sorted(missing)[:5]}"


def check_effects(rows: Sequence[Row], effects: Sequence[EffectRow], *, in_order: Collection[str] | None) -> None:
    """Check promises 2 and 3: one effect an event, in the order of ids for each key, and no other effect."""
    counts = Counter(effect.outbox_id for effect in effects)
    consumed = {row.id: row for row in rows if row.status == "consumed"}
    missing = sorted(consumed.keys() - counts.keys())
    assert not missing, f"{len(missing)} consumed events without an effect: {missing[:5]}"
    extra = sorted(counts.keys() - consumed.keys())
    assert not extra, f"{len(extra)} effects of events that are not consumed: {extra[:5]}"
    twice = {row_id: count for row_id, count in counts.items() if count > 1}
    assert not twice, f"events with several effects: {twice}"
    foreign = [
        effect
        for effect in effects
        if (effect.event_id, effect.key) != (consumed[effect.outbox_id].event_id, consumed[effect.outbox_id].key)
    ]
    assert not foreign, f"effects that speak of other events: {foreign[:5]}"
    by_key: dict[str, list[int]] = defaultdict(list)
    for effect in effects:
        by_key[effect.key].append(effect.outbox_id)
    disorder = {key: ids for key, ids in by_key.items() if (in_order is None or key in in_order) and ids != sorted(ids)}
    assert not disorder, f"keys whose events took effect out of order: {dict(list(disorder.items())[:3])}"


# --- Kafka -------------------------------------------------------------------------------------------------------


def kafka_admin(servers: str) -> Any:
    """Return an admin client; close it."""
    from kafka import KafkaAdminClient

    return KafkaAdminClient(bootstrap_servers=servers.split(","))


def create_topic(servers: str, topic: str, **configs: str) -> None:
    """Create a topic as the tests' workers would, with ``configs`` of its own."""
    admin = kafka_admin(servers)
    try:
        options = {"num_partitions": 3, "replication_factor": 1, "configs": configs}
        admin.create_topics({topic: options}, wait_for_metadata=True)
    finally:
        admin.close()


def topic_length(servers: str, topic: str) -> int:
    """Return how many records were ever written to a topic."""
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    admin = kafka_admin(servers)
    try:
        partitions = [TopicPartition(topic, number) for number in range(3)]
        found = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    finally:
        admin.close()
    return sum(entry.offset for entry in found.values())


def remove_topics(servers: str, *, topics: Sequence[str], groups: Sequence[str] = ()) -> None:
    """Delete topics and groups, as far as they are there and nobody uses them."""
    from kafka.errors import KafkaError

    admin = kafka_admin(servers)
    try:
        admin.delete_topics(list(topics), raise_errors=False)
        with suppress(KafkaError):
            admin.delete_groups(list(groups))
    finally:
        admin.close()


def group_members(servers: str, group: str) -> dict[str, Any]:
    """Return the state of a consumer group and its member ids."""
    admin = kafka_admin(servers)
    try:
        found: dict[str, Any] = admin.describe_groups([group])[group]
    finally:
        admin.close()
    return found
