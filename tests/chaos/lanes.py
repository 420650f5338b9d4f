"""Carries out a schedule: a thread for each lane, so that what is slow in one holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import MySQLdb
from kafka.errors import KafkaError

from scripts.services.errors import ServicesError
from tests.chaos import (  # noqa: F401 - they register
    database_faults,
    floods,
    foreign_records,
    handlers,
    holders,
    hosts,
    operator_looks,
    people,
    strangers,
    transactions,
)
from tests.chaos.cluster import Cluster
from tests.chaos.errors import ImpossibleError, MissedError
from tests.chaos.faults import FAULTS
from tests.chaos.schedule import TimedFault

Outcome = Literal["done", "missed", "skipped", "impossible", "broken"]

_LEAST_GAP_S = 1.0
"""A lane that is late still rests a little."""

_TRIES_S = 20.0
"""How long a fault is tried that has nothing to take hold of: the database may be away, and comes back."""


@dataclass(frozen=True, slots=True)
class Happening:
    """What became of one fault."""

    fault: TimedFault
    began_s: float
    ended_s: float
    outcome: Outcome
    """``missed``: nothing to take hold of, or another fault was in the way; ``skipped``: no time was left;
    ``impossible``: this machine cannot do it."""
    note: str

    @property
    def was_tried(self) -> bool:
        """Say whether it may have done anything."""
        return self.outcome not in {"skipped", "impossible"}

    def __str__(self) -> str:
        span = f"{self.began_s:7.1f} s to {self.ended_s:6.1f} s"
        return f"{span}  {self.fault.name:<18} {self.outcome:<10} {self.note}".rstrip()


class Lanes:
    """The faults of a run, under way."""

    def __init__(
        self, cluster: Cluster, faults: Sequence[TimedFault], *, end_s: float, tell: Callable[[str], None]
    ) -> None:
        self.happenings: list[Happening] = []
        self._cluster, self._end_s, self._tell = cluster, end_s, tell
        lanes: dict[str, list[TimedFault]] = {}
        for fault in faults:
            lanes.setdefault(fault.lane, []).append(fault)
        self._threads = [
            threading.Thread(target=self._run, args=(each,), name=f"lane-{name}", daemon=True)
            for name, each in lanes.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until each fault under way has undone itself."""
        for thread in self._threads:
            thread.join()

    def _run(self, faults: Sequence[TimedFault]) -> None:
        for fault in faults:
            self._cluster.rest(max(_LEAST_GAP_S if fault.at_s else 0, fault.at_s - self._cluster.elapsed_s))
            began_s = self._cluster.elapsed_s
            is_too_late = fault.at_s > 0 and began_s + fault.length_s > self._end_s
            if self._cluster.over.is_set() or is_too_late:
                outcome, note = "skipped", ""
            else:
                outcome, note = self._inject(fault)
            happening = Happening(fault, began_s, self._cluster.elapsed_s, outcome, note)
            self.happenings.append(happening)
            self._tell(str(happening))

    def _inject(self, fault: TimedFault) -> tuple[Outcome, str]:
        give_up_s = min(self._cluster.elapsed_s + _TRIES_S, self._end_s - fault.length_s)
        try:
            while True:
                try:
                    return "done", FAULTS[fault.name](self._cluster, fault)
                except MissedError:
                    if self._cluster.elapsed_s > give_up_s or self._cluster.over.is_set():
                        raise
                self._cluster.rest(_LEAST_GAP_S)
        except (MissedError, MySQLdb.Error, KafkaError, AssertionError, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            return "missed", lines[0]
        except ImpossibleError as error:
            return "impossible", str(error)
        except ServicesError as error:
            return "broken", str(error)
        except Exception as error:  # noqa: BLE001 - the other lanes go on; the report shows it
            return "broken", f"{type(error).__name__}: {error}"
