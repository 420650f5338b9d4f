"""An operator who looks at the admin's pages and at ``outbox_status`` while Kafka is unavailable."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from http import HTTPStatus
from typing import Final

from tests.chaos.admin_client import PAGES
from tests.chaos.cluster import Cluster
from tests.chaos.faults import injects
from tests.chaos.ledger import Look
from tests.chaos.schedule import TimedFault

PAGE_S: Final = 1.0
"""What ``acceptance/test_admin_speed`` asks of every page."""

STATUS_S: Final = 2.0
"""``outbox_status`` asks for a second; what Python takes to start is measured beside it and does not count."""

NEEDS_A_PERSON: Final = 2
"""The exit code of ``outbox_status --check``."""


_MACHINE_S: Final = 2.0
"""A wait for Kafka lasts longer than this and the limits."""


@injects("kafka-watched")
def _look_at_outage(cluster: Cluster, fault: TimedFault) -> str:
    server = cluster.servers.by_name["kafka"]
    cluster.pages.be_ready()
    start_s = _start_s(cluster)
    how = ("stop", "kill", "pause")[int(3 * fault.dice)]
    end_s = cluster.elapsed_s + fault.length_s
    pages: list[Look] = []
    answers: list[Look] = []
    try:
        getattr(server, how)()
        while not answers or (cluster.elapsed_s < end_s and not cluster.over.is_set()):
            pages += [_look_at(cluster, path) for path in PAGES]
            answers.append(_ask_status(cluster))
    finally:
        server.resume() if how == "pause" else server.start()
    if any(each.took_s - start_s > STATUS_S for each in answers):
        start_s = max(start_s, _start_s(cluster))  # the machine may have become busier meanwhile
    cluster.ledger.looks += [*pages, *(without_start(each, start_s) for each in answers)]
    return f"{how}; {len(pages) + len(answers)} looks"


def _look_at(cluster: Cluster, path: str) -> Look:
    began_at = time.time()
    try:
        status, took_s = cluster.pages.open(path)
    except AssertionError as error:
        return Look(path, began_at, time.time(), PAGE_S, _MACHINE_S, str(error).splitlines()[0])
    problem = "" if status == HTTPStatus.OK else f"it answered {status}"
    return Look(path, began_at, began_at + took_s, PAGE_S, _MACHINE_S, problem)


def _ask_status(cluster: Cluster) -> Look:
    """Run the command; what Python takes to start is in the time that it took."""
    what, began_at = "outbox_status --check", time.time()
    try:
        done = cluster.installation.run("outbox_status", "--check")
    except subprocess.TimeoutExpired as error:
        return Look(what, began_at, time.time(), STATUS_S, _MACHINE_S, str(error))
    ended_at = time.time()
    problem = status_problem(done.returncode, done.stdout + done.stderr, broker=cluster.servers.kafka_address)
    return Look(what, began_at, ended_at, STATUS_S, _MACHINE_S, problem)


def without_start(look: Look, start_s: float) -> Look:
    """Return a look without the seconds that Python takes to start: where that is long, the rest takes long, too."""
    ended_at = max(look.began_at, look.ended_at - start_s)
    return dataclasses.replace(look, ended_at=ended_at, machine_s=max(look.machine_s, start_s))


def _start_s(cluster: Cluster) -> float:
    """Return how long the command takes until it asks anybody."""
    began = time.monotonic()
    cluster.installation.run("outbox_status", "--help")
    return time.monotonic() - began


def status_problem(code: int, said: str, *, broker: str) -> str:
    """Return what is wrong with an answer of ``outbox_status --check`` while ``broker`` is unavailable."""
    if code != NEEDS_A_PERSON:
        return f"it ended with exit code {code}: {said[-2000:]}"
    if broker not in said:
        return f"it does not name {broker}: {said[-2000:]}"
    return ""
