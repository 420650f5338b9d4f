"""One run of relays or consumers on a backlog, the project's own or the ceiling's: both begin and are timed alike.

Processes are started first and get their work when all of them are ready: relays by a backlog that becomes due at one
moment, consumers by a switch (ours) or a file (the ceiling's). The speed comes from the moments that the database wrote
into the rows, without the first and the last tenth of the events: one process may begin a little later, one is last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from benchmarks.arithmetic import Step, middle, speed
from benchmarks.installation import Installation
from benchmarks.processes import Process
from benchmarks.speed.ceilings import READY
from benchmarks.speed.groups import Group
from benchmarks.tables import TABLE, OutboxTable, Template

SHARDS: Final = 16
_READY_TIMEOUT_S: Final = 60.0
_WORK_TIMEOUT_S: Final = 600.0
_LOOK_S: Final = 0.3
_CONSUMER_BEAT_S: Final = 0.5
"""Consumers look at their switch on a heartbeat: several are to begin at one time."""

Who = Literal["ours", "ceiling"]


@dataclass(frozen=True, slots=True)
class Load:
    """A backlog."""

    events: int
    keys: int
    payload: int
    waiting: int = 0
    """Rows beside it that are due in a day."""
    consumed: int = 0
    """Rows beside it that are consumed and not pruned."""
    batch: int = 500


class Stage:
    """An installation on which one run follows the other."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.outbox = OutboxTable(installation)
        self._templates: dict[int, Template] = {}
        self._margin = 1.0
        self._runs = 0

    def relay(self, who: Who, load: Load, *, processes: int = 1) -> float:
        """Relay ``load``; return events a second."""
        self.empty()
        self._template(load)
        started = self._start_relays(who, load, processes)
        try:
            due_at = self._fill_due_later(load)
            self.installation.wait(
                lambda: not self._is_open("pending"),
                "the backlog is relayed",
                timeout_s=_WORK_TIMEOUT_S,
                every_s=_LOOK_S,
            )
        finally:
            self._stop(started)
        steps = self.outbox.marks()
        self._check(started, steps, load)
        if min(moment for moment, _ in steps) < due_at:
            raise RuntimeError("a relay began before the backlog was due")
        return speed(middle(steps))

    def consume(self, who: Who, load: Load, *, processes: int = 1, each: bool = False) -> float:
        """Consume ``load``; return events a second. ``each``: by a handler of one event that upserts it."""
        self.empty()
        self._template(load)
        started = self._ready_consumers(who, load, processes, each=each)
        try:
            self._let_go()
            self.installation.wait(
                lambda: not self._is_open("published"),
                "the backlog is consumed",
                timeout_s=_WORK_TIMEOUT_S,
                every_s=_LOOK_S,
            )
        finally:
            self._stop(started)
        steps = self.outbox.marks("consumed_at")
        self._check(started, steps, load)
        return speed(middle(steps))

    def empty(self) -> None:
        """Begin with empty tables."""
        self.outbox.truncate()
        for table in ("agent_state_snapshot_records", "outbox_rejected_records", "outbox_service_switches"):
            self.outbox.execute(f"TRUNCATE TABLE {table}")

    def fill(self, load: Load, **columns: str) -> None:
        """Add the backlog; ``columns`` as SQL of ``seq``."""
        self.outbox.fill(self._template(load), rows=load.events, keys=load.keys, more=columns)

    def publish_backlog(self, load: Load) -> None:
        """Fill the table and have the real relay put all of it on the topic."""
        self._fill_consumed(load)
        self.fill(load)
        relay = self.installation.manage("relay", "run_relay", "agent", "--once")
        relay.wait(timeout_s=_WORK_TIMEOUT_S)
        left = self.outbox.count("status NOT IN ('published', 'consumed')")
        if left:
            raise RuntimeError(f"{left} rows were not relayed:\n{relay.text[-4000:]}")
        self.outbox.settle()

    # --- relays --------------------------------------------------------------------------------------------------

    def _start_relays(self, who: Who, load: Load, processes: int) -> list[Process]:
        if who == "ceiling":
            return self._start_ceilings("relay", load, processes)
        self.installation.options = {"RELAY": {"BATCH_SIZE": load.batch}}
        started = [self.installation.manage(f"relay-{number}", "run_relay", "agent") for number in range(processes)]
        self.installation.wait(
            lambda: sorted(self._shares()) == sorted(len(range(n, SHARDS, processes)) for n in range(processes)),
            "the relays share the shards",
            timeout_s=_READY_TIMEOUT_S,
        )
        return started

    def _shares(self) -> list[int]:
        return [
            int(count)
            for _, count in self.outbox.execute(
                "SELECT owner, COUNT(*) FROM outbox_shard_leases WHERE service = 'agent' AND role = 'relay'"
                " AND owner <> '' AND expires_at > UTC_TIMESTAMP(6) GROUP BY owner"
            )
        ]

    def _fill_due_later(self, load: Load) -> float:
        """Fill the table with what becomes due when all of it is there; return that moment as ``marks`` gives it."""
        for _ in range(4):
            self.outbox.truncate()
            if load.waiting:
                waiting = Load(load.waiting, load.keys, load.payload)
                self.fill(waiting, next_retry_at="UTC_TIMESTAMP(6) + INTERVAL 1 DAY + INTERVAL seq MICROSECOND")
            guess_s = self._margin * (1.0 + load.events / 20_000 + load.events * load.payload / 50e6)
            [(moment, seconds)] = self.outbox.execute(
                "SELECT due, TIMESTAMPDIFF(MICROSECOND, '2000-01-01', due) / 1000000"
                f" FROM (SELECT UTC_TIMESTAMP(6) + INTERVAL {int(guess_s * 1e6)} MICROSECOND AS due) moments"
            )
            due = f"TIMESTAMP('{moment}') - INTERVAL {load.events} - seq MICROSECOND"
            self.fill(load, next_retry_at=due)
            self.outbox.settle()
            first = f"TIMESTAMP('{moment}') - INTERVAL {load.events} MICROSECOND"
            if self.outbox.execute(f"SELECT UTC_TIMESTAMP(6) < {first}")[0][0]:
                return float(seconds) - load.events / 1e6
            self._margin *= 2
        raise RuntimeError("the backlog could not be filled before it was due")

    # --- consumers -----------------------------------------------------------------------------------------------

    def _ready_consumers(self, who: Who, load: Load, processes: int, *, each: bool) -> list[Process]:
        if who == "ceiling":
            moment = "UTC_TIMESTAMP(6)"
            later = f"{moment} + INTERVAL 300 SECOND"
            self._fill_consumed(load)
            self.fill(load, status="'published'", published_at=moment, next_retry_at=later)
            self.outbox.settle()
            return self._start_ceilings("consumer", load, processes, *(["--each"] if each else []))
        self.installation.options = {
            "CONSUMER": {"BATCH_SIZE": load.batch},
            "LEASES": {"HEARTBEAT_SECONDS": _CONSUMER_BEAT_S},
        }
        started = [self._start_consumer(number, each=each) for number in range(processes)]
        self.installation.options = {}
        with Group(self.installation.group()) as group:
            self.installation.wait(
                lambda: group.is_settled(processes), "the consumers share the partitions", timeout_s=_READY_TIMEOUT_S
            )
        self.outbox.execute("INSERT INTO outbox_service_switches (service, consumer_paused) VALUES ('agent', TRUE)")
        time.sleep(3 * _CONSUMER_BEAT_S)  # until each has seen it
        self.publish_backlog(load)
        return started

    def _fill_consumed(self, load: Load) -> None:
        """Add the rows that are consumed, without a time: only those of the run have one."""
        if load.consumed:
            self.fill(replace(load, events=load.consumed), status="'consumed'")

    def _start_consumer(self, number: int, *, each: bool) -> Process:
        name = f"consumer-{number}"
        if each:
            return self.installation.start(name, "-m", "benchmarks.speed.upserts")
        return self.installation.manage(name, "consume", "agent")

    def _let_go(self) -> None:
        self._go.touch()
        self.outbox.execute("DELETE FROM outbox_service_switches")

    # --- all -----------------------------------------------------------------------------------------------------

    @property
    def _go(self) -> Path:
        return self.installation.folder / f"go-{self._runs}"

    def _start_ceilings(self, kind: str, load: Load, processes: int, *more: str) -> list[Process]:
        started = []
        self._runs += 1
        for number in range(processes):
            shards = ",".join(map(str, range(number, SHARDS, processes)))
            of_shards = ("--shards", shards) if processes > 1 else ()
            started.append(
                self.installation.start(
                    f"ceiling-{number}",
                    *("-m", "benchmarks.speed.ceilings", kind, "--url", self.installation.url, "--go", str(self._go)),
                    *("--batch", str(load.batch)),
                    *of_shards,
                    *more,
                )
            )
        self.installation.wait(
            lambda: all(READY in process.text for process in started),
            "the ceiling is ready",
            timeout_s=_READY_TIMEOUT_S,
        )
        return started

    def _template(self, load: Load) -> Template:
        if load.payload not in self._templates:
            self._templates[load.payload] = self.outbox.template(body_bytes=load.payload)
        return self._templates[load.payload]

    def _is_open(self, status: str) -> bool:
        """Say whether rows are left; asks for the last one first, which disturbs nobody."""
        [(last,)] = self.outbox.execute(f"SELECT status FROM {TABLE} ORDER BY id DESC LIMIT 1")
        return bool(last == status or self._left(status))

    def _left(self, status: str) -> int:
        return self.outbox.count(f"status = '{status}' AND next_retry_at < UTC_TIMESTAMP(6) + INTERVAL 1 HOUR")

    def _stop(self, started: Sequence[Process]) -> None:
        for process in started:
            process.stop()
            self.installation.processes.remove(process)

    def _check(self, started: Sequence[Process], steps: Sequence[Step], load: Load) -> None:
        for process in started:
            for warning in process.warnings[:3]:
                print(f"{process.name}: {warning}", flush=True)  # it may have spoilt the run: look at the spread
        done = sum(count for _, count in steps)
        errors = [process.text[-4000:] for process in started if process.errors]
        if done != load.events or errors:
            raise RuntimeError("\n".join([f"{done:,} of {load.events:,} events were brought to their end", *errors]))
