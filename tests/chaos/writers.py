"""Who publishes: loads of the acceptance harness, each a process with its own keys and its own kind of events."""

from __future__ import annotations

import random
import threading
from typing import Any, Final

import msgspec

from tests.acceptance.harness import Installation
from tests.acceptance.plans import Kind, Plan
from tests.acceptance.workers import Worker

ALWAYS: Final = ("hot", "wide", "bulk", "snapshot")
"""Those that publish sound events only; the others are faults by the same name."""

_NOISE: Final = random.Random(0).randbytes(50_000).hex()
"""No compression brings it below ``TOPIC_LIMIT``."""

TOPIC_LIMIT: Final = 32_768

_WRITERS: Final[dict[str, tuple[float, Kind, dict[str, Any], dict[str, Any]]]] = {
    "hot": (0.23, "step", {"threads": 3, "keys": 1, "events": 4}, {}),
    "wide": (0.25, "step", {"threads": 4, "keys": 15, "events": 5}, {}),
    "bulk": (0.15, "bulk", {"threads": 2, "keys": 3, "events": 6}, {}),
    "snapshot": (0.1, "snapshot", {"threads": 2, "keys": 3}, {}),
    "flaky": (0.08, "step", {"threads": 2, "keys": 2, "events": 3}, {"fail_times": 2, "every": 7}),
    "poison": (0.04, "bulk", {"threads": 1, "keys": 3, "events": 3}, {"verdict": "poison", "every": 12}),
    "discard": (0.04, "bulk", {"threads": 1, "keys": 3, "events": 3}, {"verdict": "discard", "every": 9}),
    "asks-again": (0.03, "bulk", {"threads": 1, "keys": 2}, {"verdict": "retry", "every": 4}),
    "slow": (0.03, "step", {"threads": 1, "keys": 2}, {"sleep_ms": 1500, "every": 8}),
    "parking": (0.1, "parking", {"threads": 1, "keys": 24}, {"verdict": "discard", "every": 3}),
    "oversize": (0.005, "step", {"threads": 1, "keys": 2, "events": 1}, {"filler": _NOISE}),
}
"""Share of the rate, kind of event, shape of the plan, and what the events say to their handlers."""

_BEFORE_ITS_START: Final = "exit code -15"
"""A process that SIGTERM ended like that had not come to where it listens for it."""

_GIVES_UP: Final = "RuntimeError: the snapshot was not published"
"""The agent service logs that it could not publish a snapshot, as in an outage, and lets its caller go on; the load of
the acceptance tests takes that for its end."""


def make_plan(name: str, *, generation: int, seed: int, rate: float) -> Plan:
    """Return the plan of one writer; ``rate`` is that of all writers together, in events per second."""
    share, kind, shape, fields = _WRITERS[name]
    plan = Plan(
        prefix=f"{name}.{generation}",
        kind=kind,
        transactions=0,
        rollbacks=0.2,
        seed=seed,
        fields=fields,
        **shape,
    )
    written = (1 + plan.events) / 2 * plan.threads * (1 - plan.rollbacks)
    return msgspec.structs.replace(plan, pause_ms=round(1000 * written / (share * rate)))


class Writers:
    """The processes that publish."""

    def __init__(self, installation: Installation, *, seed: int, rate: float) -> None:
        self._installation, self._seed, self._rate = installation, seed, rate
        self._running: dict[str, Worker] = {}
        self._generation = 0
        self._lock = threading.RLock()
        self.trouble: list[str] = []
        """Those that ended by themselves."""

    def start(self, name: str) -> None:
        """Start a writer under the next prefix: a key belongs to one thread of one process."""
        with self._lock:
            self._generation += 1
            plan = make_plan(name, generation=self._generation, seed=self._seed, rate=self._rate)
            self._running[name] = self._installation.start_load(plan)

    def kill(self, dice: float) -> str:
        """``kill -9`` one writer, start another in its place, and say which."""
        with self._lock:
            self.tend()
            name = sorted(self._running)[int(dice * len(self._running))]
            self._running[name].kill9()
            self.start(name)
            return name

    def tend(self) -> None:
        """Find those that ended by themselves, and start others in their places."""
        with self._lock:
            for name, writer in list(self._running.items()):
                if not writer.is_alive:
                    if _GIVES_UP not in writer.text:
                        self.trouble.append(f"{writer.name} ended by itself:\n{writer.text[-6000:]}")
                    self.start(name)

    def stop(self) -> None:
        """Let all finish their transactions and end."""
        self.tend()
        for writer in self._running.values():
            try:
                writer.stop(timeout_s=60)
            except AssertionError as error:
                if _BEFORE_ITS_START not in str(error):
                    self.trouble.append(str(error))
        self._running.clear()
