"""What a fault does: it takes hold, lasts, and undoes itself. Here those of workers, servers and connections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from scripts.services.server import NativeServer
from tests.chaos import clocks
from tests.chaos.cluster import Cluster
from tests.chaos.crew import Member, Role
from tests.chaos.errors import MissedError
from tests.chaos.kinds import KINDS, STANDING
from tests.chaos.schedule import TimedFault

Inject = Callable[[Cluster, TimedFault], str]
"""Returns what was done, for the log."""


FAULTS: Final[dict[str, Inject]] = {}


def injects(*names: str) -> Callable[[Inject], Inject]:
    """Register what the faults of these names do."""

    def register(function: Inject) -> Inject:
        FAULTS.update(dict.fromkeys(names, function))
        return function

    return register


# --- workers -----------------------------------------------------------------------------------------------------


def _role(fault: TimedFault) -> Role:
    return "relay" if fault.lane == "relays" else "consumer"


def _pick(cluster: Cluster, fault: TimedFault, *, at_work: bool = False) -> Member:
    member = cluster.crew.pick(_role(fault), fault.dice, at_work=at_work)
    if member is None:
        raise MissedError(f"no {_role(fault)} is at work")
    return member


@injects("relay-kill", "consumer-kill")
def _kill(cluster: Cluster, fault: TimedFault) -> str:
    member = _pick(cluster, fault)
    cluster.crew.kill(member)
    cluster.crew.start(member.role, member.service)
    return str(member)


@injects("relay-freeze", "consumer-freeze")
def _freeze(cluster: Cluster, fault: TimedFault) -> str:
    member = _pick(cluster, fault, at_work=True)
    with cluster.crew.frozen(member):
        cluster.rest(fault.length_s)
    return str(member)


@injects("relay-clock", "consumer-clock")
def _move_clock(cluster: Cluster, fault: TimedFault) -> str:
    member = _pick(cluster, fault, at_work=True)
    off_s = clocks.jump_s(fault.dice)
    member.clock.put(off_s)
    try:
        written, since = len(member.worker.text), datetime.now(UTC)
        cluster.rest(fault.length_s)
        lines, is_off = clocks.shifted_lines(member.worker.text[written:], off_s=off_s, since=since)
    finally:
        member.clock.put(0)
    if lines and not is_off:
        raise RuntimeError(f"the clock of the {member} was put {off_s:+g} s off, and its log shows nothing of it")
    return f"{off_s:+g} s, {f'seen in {lines} lines' if lines else 'nothing was written'} of the {member}"


@injects("relay-term", "consumer-term")
def _term(cluster: Cluster, fault: TimedFault) -> str:
    member = _pick(cluster, fault, at_work=True)
    cluster.crew.stop(member)
    cluster.crew.start(member.role, member.service)
    return str(member)


@injects("relay-more", "consumer-more")
def _more(cluster: Cluster, fault: TimedFault) -> str:
    member = cluster.crew.start(_role(fault), "probe")
    cluster.rest(fault.length_s)
    cluster.crew.stop(member)
    return str(member)


@injects("relay-fewer", "consumer-fewer")
def _fewer(cluster: Cluster, fault: TimedFault) -> str:
    member = _pick(cluster, fault, at_work=True)
    cluster.crew.stop(member)
    try:
        cluster.rest(fault.length_s)
    finally:
        cluster.crew.start(member.role, member.service)
    return str(member)


@injects("writer-kill")
def _kill_writer(cluster: Cluster, fault: TimedFault) -> str:
    return cluster.writers.kill(fault.dice)


@injects(*(name for name, kind in KINDS.items() if kind.lane == STANDING))
def _start_writer(cluster: Cluster, fault: TimedFault) -> str:
    cluster.writers.start(fault.name)
    return ""


# --- servers and connections -------------------------------------------------------------------------------------


def _server(cluster: Cluster, fault: TimedFault) -> NativeServer:
    return cluster.servers.by_name[fault.name.partition("-")[0]]


@injects("kafka-stop", "database-stop", "kafka-kill", "database-kill")
def _take_away(cluster: Cluster, fault: TimedFault) -> str:
    server = _server(cluster, fault)
    try:
        server.stop() if fault.name.endswith("stop") else server.kill()
        cluster.rest(fault.length_s)
    finally:
        server.start()
    return ""


@injects("kafka-freeze", "database-freeze")
def _freeze_server(cluster: Cluster, fault: TimedFault) -> str:
    server = _server(cluster, fault)
    server.pause()
    try:
        cluster.rest(fault.length_s)
    finally:
        server.resume()
    return ""


@injects(*(f"{name}-{what}" for name in ("kafka", "database") for what in ("latency", "cut", "half-open", "deaf")))
def _spoil_connections(cluster: Cluster, fault: TimedFault) -> str:
    name, _, what = fault.name.partition("-")
    proxy = cluster.servers.proxies[name]
    is_cut_at_its_end = what == "deaf" or (what == "half-open" and fault.dice < 0.5)
    try:
        if what == "latency":
            proxy.delay(0.01 + 0.15 * fault.dice)
        elif what == "cut":
            _cut_again_and_again(cluster, fault)
            return ""
        else:
            proxy.hold(answers_only=what == "deaf")
        cluster.rest(fault.length_s)
    finally:
        proxy.heal(cut=is_cut_at_its_end)
    return "reset at its end" if is_cut_at_its_end else ""


def _cut_again_and_again(cluster: Cluster, fault: TimedFault) -> None:
    end_s = cluster.elapsed_s + fault.length_s
    while cluster.elapsed_s < end_s and not cluster.over.is_set():
        cluster.servers.proxies[fault.name.partition("-")[0]].cut()
        cluster.rest(0.2 + fault.dice)
