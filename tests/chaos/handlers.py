"""Handlers that do wrong: each fault publishes one event that has its handler do so, amid sound ones.

What the event says decides what must become of it: see ``expectations``.
"""

from __future__ import annotations

import random
import time
from typing import Any, Final

from tests.acceptance.probe import trace
from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.holders import hold_business_row
from tests.chaos.kinds import KINDS
from tests.chaos.schedule import TimedFault

FOR_EVER: Final = 1000
"""Such an event has to die."""

IDLE_MS: Final = 2200
"""Less than the time limit of a handler."""

_ALONE: Final = frozenset({"raw-commit", "hook", "idle", "row-lock"})
"""Those that are handled one by one only, beside those that hang: a list has one time limit for all."""

_TIMES: Final[dict[str, tuple[int, ...]]] = {"handlers": (1, 2, 2, FOR_EVER), "killers": (1, 1, 1, 2, 1, FOR_EVER)}
_ONCE: Final = frozenset({"raw-commit"})

_BAITS: Final = 3
_COMES_S: Final = 90.0
"""An event waits for what lies before it, and for servers and consumers that are away."""


def faulty_events(fault: TimedFault) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of one transaction: one that has its handler do wrong, one behind it, and sound ones."""
    dice = random.Random(fault.dice)
    name = f"{fault.name}-{fault.at_s}"
    times = 1 if fault.name in _ONCE else dice.choice(_TIMES[fault.lane])
    if fault.name.startswith("hang") or fault.name == "kill-match":
        times = dice.choice((1, 1, 2))  # each costs its time limit, and a process perhaps
    is_single = fault.name in _ALONE or fault.name.startswith("hang") or dice.random() < 0.5
    bad = {"key": name, "n": 1, "fault": fault.name, "times": times}
    if fault.name == "idle":
        bad["sleep_ms"] = IDLE_MS
    sound = [("step" if is_single else "bulk", {"key": f"{name}-{number}"}) for number in range(3)]
    return [sound[0], ("faulty" if is_single else "faulty-list", bad), ("step", {"key": name, "n": 2}), *sound[1:]]


@injects(*(name for name, kind in KINDS.items() if kind.lane in {"handlers", "killers"} and name != "row-lock"))
def _misbehave(cluster: Cluster, fault: TimedFault) -> str:
    event_ids = cluster.publisher.publish(*faulty_events(fault))
    return f"event {event_ids[1]}"


@injects("row-lock", "row-holder")
def _want_locked_row(cluster: Cluster, fault: TimedFault) -> str:
    """Lock a business row, and publish events whose handlers write it, now and then."""
    with hold_business_row(cluster, fault) as target:
        end_s, number = cluster.elapsed_s + fault.length_s, 0
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            key = f"{fault.name}-{fault.at_s}-{number}"
            event = {"key": key, "n": number, "fault": "row-lock", "target": target}
            try:
                cluster.publisher.publish(("faulty", event), ("step", {"key": key}))
                number += 1
            except MissedError:
                pass  # the stranger goes on holding the row
            cluster.rest(min(15.0, max(1.0, end_s - cluster.elapsed_s)))
    return f"business row {target}, wanted by {number} events"


def caught_in_handler(cluster: Cluster, fault: TimedFault) -> tuple[int, str]:
    """Publish events whose handlers sleep with an open transaction, on several partitions.

    Return the process that has just begun with one of them, or of those before that came late, and the event's key.

    :raises MissedError: no consumer came to any.
    """
    keys = [f"{fault.name}-{fault.at_s}-{number}" for number in range(_BAITS)]
    begun = _begun(cluster)
    cluster.publisher.publish(*(("faulty", {"key": key, "fault": "idle", "sleep_ms": IDLE_MS}) for key in keys))
    with cluster.database() as database:
        for key in keys:
            row_id = database.value(f"SELECT MAX(id) FROM probe_outbox_messages WHERE message_key = '{key}'")
            cluster.baits[int(row_id)] = key
    deadline = time.monotonic() + _COMES_S
    while time.monotonic() < deadline and not cluster.over.is_set():
        for mark in trace.read(cluster.installation.trace_path)[begun:]:
            if mark.what == "begin" and mark.outbox_id in cluster.baits:
                return mark.pid, cluster.baits.pop(mark.outbox_id)
        cluster.rest(0.2)
    raise MissedError("no consumer came to the events")


def _begun(cluster: Cluster) -> int:
    return len(trace.read(cluster.installation.trace_path))
