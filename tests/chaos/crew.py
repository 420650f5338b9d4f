"""The relays and consumers of a run: who they are, and how each came to its end."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from tests.acceptance.harness import Installation
from tests.acceptance.workers import Worker
from tests.chaos.clocks import Clock, make_clock

Role = Literal["relay", "consumer"]
Fate = Literal["runs", "leaves", "killed", "stopped", "ended by itself", "did not stop well"]

STOPS_S = 90.0
"""Longer than any fault that a worker may be in the middle of, on a machine that is busy with other things."""

SETTINGS: Final = {"DJANGO_SETTINGS_MODULE": "tests.chaos.worker_settings"}

ALSO: Final = {"probe": (), "agent": ("probe",)}
"""What else a relay carries: one whose first service has lost its table must go on with the other."""

HUNG_EXIT_CODE: Final = 79
"""How a worker ends one of whose handlers never returned."""

_KEEPS_LOCK_S: Final = 30.0
"""For how long a process stood still, at the most, that the kernel ended because a handler kept the interpreter's lock.
That takes 9 s of the processor, the time limit and three times the grace, which a busy machine stretches."""

BATCH_SIZES: Final = (40, 1, 8)
"""Of one consumer after the other. In a batch of one, an outage that is taken for a fault has nobody else to blame."""


@dataclass(slots=True)
class Member:
    """One relay or consumer."""

    worker: Worker
    role: Role
    service: str
    clock: Clock
    fate: Fate = "runs"
    told: str = ""
    came_at: float | None = None
    """When it was first seen past its start. Moments are seconds since 1970, to be compared with the database's."""
    left_at: float | None = None
    """When it was gone, or asked to go."""
    exit_code: int | None = None
    """How it ended where nobody had killed it."""
    froze: list[tuple[float, float]] = field(default_factory=list)

    @property
    def is_at_work(self) -> bool:
        """Say whether it has come past its start: before that, SIGTERM simply ends a process."""
        return self.came_at is not None

    @property
    def kept_lock(self) -> tuple[float, float] | None:
        """From when to when a handler may have kept the interpreter's lock, and nothing else moved; None: never."""
        if self.exit_code != -BACKSTOP_SIGNAL or self.left_at is None:
            return None
        return self.left_at - _KEEPS_LOCK_S, self.left_at

    def __str__(self) -> str:
        return f"{self.role} of {self.service}, process {self.worker.pid}, log {self.worker.log.name}"


class Crew:
    """All workers of a run, those that are gone too. Safe to share between threads."""

    def __init__(self, installation: Installation) -> None:
        self.members: list[Member] = []
        self._installation = installation
        self._lock = threading.RLock()
        self._batch_sizes = itertools.cycle(BATCH_SIZES)

    def start(self, role: Role, service: str) -> Member:
        """Start one more worker."""
        with self._lock:
            clock = make_clock(self._installation.folder / f"clock-{len(self.members)}")
            env = {**clock.environment, **SETTINGS}
            if role == "relay":
                worker = self._installation.relay(service, also=ALSO[service], env=env)
            else:
                self._installation.options["CONSUMER"]["BATCH_SIZE"] = next(self._batch_sizes)
                worker = self._installation.consumer(service, env=env)
            member = Member(worker, role, service, clock)
            self.members.append(member)
            return member

    def running(self, role: Role | None = None) -> list[Member]:
        """Return those that run, as far as anybody has looked."""
        with self._lock:
            return [member for member in self.members if member.fate == "runs" and role in {None, member.role}]

    def pick(self, role: Role, dice: float, *, at_work: bool = False) -> Member | None:
        """Return one that runs, by ``dice``; None when there is none."""
        found = [member for member in self.running(role) if member.is_at_work or not at_work]
        return found[int(dice * len(found))] if found else None

    def note_at_work(self, pids: Collection[int]) -> None:
        """Take in which processes are known to the database."""
        for member in self.running():
            if member.came_at is None and member.worker.pid in pids:
                member.came_at = time.time()

    def tend(self) -> None:
        """Find those that ended by themselves, and put others in their places, as a supervisor does."""
        for member in self.running():
            if self._is_gone(member):
                self.start(member.role, member.service)

    def kill(self, member: Member) -> None:
        """``kill -9``."""
        with self._lock:
            if not self._is_gone(member):
                member.fate = "killed"
                member.worker.kill9()
                member.left_at = time.time()

    @contextmanager
    def frozen(self, member: Member) -> Iterator[None]:
        """Have a worker stand still."""
        began_at = time.time()
        member.worker.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            member.worker.signal(signal.SIGCONT)
            member.froze.append((began_at, time.time()))

    def stop(self, member: Member) -> None:
        """Ask a worker to end, with SIGTERM; one that is not past its start yet is killed."""
        if not member.is_at_work:
            self.kill(member)
            return
        with self._lock:
            if self._is_gone(member):
                return
            member.fate, member.left_at = "leaves", time.time()
        try:
            member.worker.stop(timeout_s=STOPS_S)
            member.fate = "stopped"
        except AssertionError as error:
            member.fate, member.told = "did not stop well", str(error).partition(":\n")[0]
            member.exit_code = member.worker.exit_code

    def wake(self) -> None:
        """Let everybody go on who was frozen."""
        for member in self.running():
            member.worker.signal(signal.SIGCONT)

    def stop_all(self) -> None:
        """Ask all to end at the same time."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            list(pool.map(self.stop, self.running()))

    def _is_gone(self, member: Member) -> bool:
        with self._lock:
            if member.fate == "runs" and not member.worker.is_alive:
                member.exit_code = member.worker.exit_code
                member.fate = "ended by itself"
                member.told = f"{member} ended by itself with exit code {member.exit_code}"
                member.left_at = time.time()
            return member.fate != "runs"
