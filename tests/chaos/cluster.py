"""All that a run is made of: servers, workers, writers, people, and the ledger of what was put in beside these."""

from __future__ import annotations

import copy
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import MySQLdb

from outbox.conf import ConsumerOptions
from tests.acceptance.databases import MariaDBDatabase
from tests.acceptance.harness import Installation
from tests.acceptance.topics import create_topic
from tests.acceptance.workers import Publisher
from tests.chaos.admin_client import AdminPages
from tests.chaos.clocks import check_jumps, sweep
from tests.chaos.crew import SETTINGS, Crew
from tests.chaos.errors import MissedError
from tests.chaos.ledger import Ledger
from tests.chaos.publishing import EventPublisher
from tests.chaos.servers import Servers
from tests.chaos.watch import LEASES, Watch
from tests.chaos.writers import ALWAYS, TOPIC_LIMIT, Writers
from tests.waiting import DeadlineError, wait_until

SERVICES: Final = ("probe", "agent")

_OPTIONS: Final = {
    "RELAY": {"BATCH_SIZE": 30, "REDELIVER_AFTER_SECONDS": 10.0, "SEND_TIMEOUT_SECONDS": 10.0},
    "CONSUMER": {
        "WAIT_MAX_SECONDS": 20.0,
        "HANDLER_TIME_LIMIT_SECONDS": 3.0,
        "HUNG_HANDLER_GRACE_SECONDS": 2.0,
    },
    "LEASES": {"TTL_SECONDS": 3.0, "HEARTBEAT_SECONDS": 1.0},
    "RETRY_BASE_SECONDS": 0.2,
    "RETRY_CAP_SECONDS": 2.0,
    "RETRY_MAX_ATTEMPTS": 5,
}
"""Small batches and short times, so that much happens in a minute."""

_BROKER_OPTIONS: Final = {"request_timeout_seconds": 5.0}

READ_UNCOMMITTED: Final = "read_uncommitted"
READ_COMMITTED: Final = "read_committed"
ISOLATION_LEVELS: Final = (READ_UNCOMMITTED, READ_COMMITTED)
"""What a consumer reads of transactions; the first is the project's default."""

_STARTS_S: Final = 120.0
_DRAINS_S: Final = 180.0
_LAG_S: Final = 60.0
"""A consumer passes markers within a second; the command that says so takes a few on a busy machine."""

_LOOKS_S: Final = 20.0
"""When patience has ended already, what is left on a topic need not come to its end."""

_EFFECTS: Final = "SELECT COUNT(*) FROM probe_effects"

_UNFINISHED: Final = "SELECT COUNT(*) FROM {}_outbox_messages WHERE status IN ('pending', 'published')"

_PARKED: Final = (
    "SELECT id, payload LIKE '%\"discard\"%' FROM probe_outbox_messages"
    " WHERE status = 'dead' AND event_type = 'probe.parking' AND resolved_at IS NULL ORDER BY id"
)


_OLD_TRANSACTIONS: Final = (
    "SELECT TIMESTAMPDIFF(SECOND, trx_started, NOW()) FROM information_schema.innodb_trx"
    " WHERE trx_started < NOW() - INTERVAL 10 SECOND"
)
_OPEN_S: Final = 30.0


class Operator:
    """A person at the admin: a process that does what the admin's actions do, made anew when an outage ended it."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._publisher: Publisher | None = None

    def replay(self, *ids: int) -> int:
        return self._do("replay", ids)

    def give_up(self, *ids: int) -> int:
        return self._do("give_up", ids)

    def _do(self, what: str, ids: tuple[int, ...]) -> int:
        """Do it; a process that an outage has ended, or whose connection is gone, is not the end of it."""
        if self._publisher is not None and self._publisher.is_alive:
            try:
                return int(getattr(self._publisher, what)(*ids))
            except (AssertionError, OSError):
                self._publisher.dispose()
        self._publisher = self._installation.publisher()
        return int(getattr(self._publisher, what)(*ids))


class Cluster:
    """Everything of one run, in a folder of its own."""

    def __init__(
        self, *, database: str, seed: int, rate: float, has_own_disk: bool, isolation_level: str = READ_UNCOMMITTED
    ) -> None:
        """``has_own_disk`` asks for a file system for the tables alone; ``isolation_level`` is that of consumers."""
        self.root = Path(tempfile.mkdtemp(prefix="smartflow-chaos-", dir="/var/tmp"))
        self.root.chmod(0o755)  # the servers' own users must reach theirs
        self.work = self.root / "work"
        self.work.mkdir()
        self.over = threading.Event()
        """Set when no fault may last any longer."""
        self.ledger = Ledger()
        self.watch = Watch()
        self.isolation_level = isolation_level
        self.servers = Servers(self.root, database=database, has_own_disk=has_own_disk)
        self.baits: dict[int, str] = {}
        """Rows whose handlers sleep to be caught at it, with their keys; ``host-freeze`` alone uses them."""
        self._seed, self._rate = seed, rate
        self._began = time.monotonic()
        self.began_at = time.time()

    def up(self) -> None:
        """Start everything: two relays and two consumers of the probe service, one of each of the agent service."""
        check_jumps(self.work)
        self.servers.up()
        self.installation = Installation(
            database=self.servers.proxied_database(),
            kafka=self.servers.kafka_address,
            folder=self.work,
            options=_known(copy.deepcopy(_OPTIONS)),
            broker_options={**_BROKER_OPTIONS, "consumer": {"isolation_level": self.isolation_level}},
        )
        create_topic(self.servers.kafka_address, self.installation.topic(), **{"max.message.bytes": str(TOPIC_LIMIT)})
        create_topic(self.servers.kafka_address, self.installation.topic("agent"))
        self.crew = Crew(self.installation)
        self.operator = Operator(self.installation)
        self.pages = AdminPages(self.installation)
        self.publisher = EventPublisher(self.installation)
        self.writers = Writers(self.installation, seed=self._seed, rate=self._rate)
        for service in ("probe", "probe", "agent"):
            self.crew.start("relay", service)
            self.crew.start("consumer", service)
        for name in ALWAYS:
            self.writers.start(name)
        with self.database() as database:
            wait_until(lambda: self._is_at_work(database), timeout=_STARTS_S, interval=0.3, message="the work began")

    # --- time ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let the clock of the run start."""
        self._began, self.began_at = time.monotonic(), time.time()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def rest(self, seconds: float) -> None:
        """Let time pass, less of it when the run ends."""
        self.over.wait(seconds)

    # --- looking -------------------------------------------------------------------------------------------------

    @contextmanager
    def database(self) -> Iterator[MariaDBDatabase]:
        """Give the database past the proxy, for one thread.

        :raises MissedError: it is away.
        """
        database = self.servers.database()
        try:
            database.query("SELECT 1")
        except MySQLdb.Error as error:
            raise MissedError(f"the database is away: {error}") from error
        try:
            yield database
        finally:
            with suppress(MySQLdb.Error):
                database.close()

    def tend(self, database: MariaDBDatabase) -> None:
        """Look after workers and writers; the database may be away."""
        self.crew.tend()
        self.writers.tend()
        self.watch.note_pressure()
        with suppress(MySQLdb.Error):
            self.crew.note_at_work({row[0] for row in database.query("SELECT pid FROM outbox_workers")})
            self.watch.note_leases(database.query(LEASES))

    # --- the end -------------------------------------------------------------------------------------------------

    def calm_down(self, *, patience_s: float) -> bool:
        """Undo every fault, see work go on, stop the writers, see nothing left on its way; say whether all was so."""
        self.servers.heal()
        self.crew.wake()
        with self.database() as database:
            database.execute("UPDATE outbox_service_switches SET relay_paused = 0, consumer_paused = 0")
            made = database.value(_EFFECTS)
            goes_on = _comes_true(
                lambda: self._is_at_work(database) and database.value(_EFFECTS) > made, patience_s=patience_s
            )
            self.writers.stop()
            return _comes_true(lambda: self._is_quiet(database), patience_s=patience_s) and goes_on

    def is_quiet_within(self, patience_s: float) -> bool:
        """Wait until nothing is on its way; say whether it came to that."""
        with self.database() as database:
            return _comes_true(lambda: self._is_quiet(database), patience_s=patience_s)

    def lags(self) -> dict[str, int | None]:
        """Wait until LAG is 0 everywhere, and return what ``outbox_status`` said last; None where it said nothing."""
        found: dict[str, int | None] = dict.fromkeys(SERVICES)

        def are_none() -> bool:
            done = self.installation.run("outbox_status", "--json", "--timeout", "10s")
            with suppress(ValueError, KeyError):
                found.update({each["service"]: each["lag"] for each in json.loads(done.stdout)["services"]})
            return all(found[service] == 0 for service in SERVICES)

        _comes_true(are_none, patience_s=_LAG_S)
        return {service: found[service] for service in SERVICES}

    def open_transactions(self) -> list[int]:
        """Return how many seconds ago those transactions began that do not end though nothing is to be done."""
        with self.database() as database:
            _comes_true(lambda: not database.query(_OLD_TRANSACTIONS), patience_s=_OPEN_S)
            return [int(age) for (age,) in database.query(_OLD_TRANSACTIONS)]

    def finish(self, *, is_quiet: bool) -> list[str]:
        """End the workers, and have others look whether a record is left on a topic that changes anything.

        Return what was wrong with those others.
        """
        self.crew.stop_all()
        troubles = []
        for service in SERVICES:
            try:
                self.installation.consumer(service, "--once", env=SETTINGS).wait(
                    timeout_s=_DRAINS_S if is_quiet else _LOOKS_S
                )
            except AssertionError as error:
                troubles.append(str(error))
        return troubles

    def dispose(self) -> None:
        """End every process and remove the servers with their data; the logs stay."""
        with ExitStack() as stack:
            stack.callback(self.servers.dispose, logs_to=self.work)
            stack.callback(sweep)
            if hasattr(self, "installation"):
                for worker in self.installation.workers:
                    stack.callback(worker.dispose)

    def _is_at_work(self, database: MariaDBDatabase) -> bool:
        self.tend(database)
        is_idle = not database.value(_EFFECTS)
        return not is_idle and all(member.is_at_work for member in self.crew.running())

    def _is_quiet(self, database: MariaDBDatabase) -> bool:
        self.tend(database)
        self._decide(database)
        unfinished = sum(database.value(_UNFINISHED.format(service)) for service in SERVICES)
        rejected = database.value("SELECT COUNT(*) FROM outbox_rejected_records")
        expected = sum(each.is_acknowledged for each in self.ledger.garbage.values())
        return not unfinished and rejected >= expected and not database.query(_PARKED)

    def _decide(self, database: MariaDBDatabase) -> None:
        """Have a person decide about every event that parks its key; the mended ones may go again."""
        parked = database.query(_PARKED)
        if mended := [row_id for row_id, is_bad in parked if not is_bad]:
            self.operator.replay(*mended)
        if bad := [row_id for row_id, is_bad in parked if is_bad]:
            self.operator.give_up(*bad)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what this version of the outbox has no option for: it refuses to start."""
    names = {name.upper() for name in ConsumerOptions.__struct_fields__}
    options["CONSUMER"] = {name: value for name, value in options["CONSUMER"].items() if name in names}
    return options


def _comes_true(condition: Callable[[], bool], *, patience_s: float) -> bool:
    try:
        return wait_until(condition, timeout=patience_s, interval=0.5)
    except DeadlineError:
        return False
