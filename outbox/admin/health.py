"""What is wrong with a service, in words that say what to do. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from outbox.admin.rendering import visible
from outbox.lifecycle import Status
from outbox.operations.durations import humanise
from outbox.operations.statistics import ServiceStatus

SLOW_AFTER: Final = timedelta(minutes=1)
STUCK_AFTER: Final = timedelta(minutes=10)


class Severity(enum.StrEnum):
    """How urgent it is; the value is a class of the style sheet."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    severity: Severity
    text: str


def worst(problems: Iterable[Problem]) -> Severity:
    """Return the most urgent severity of ``problems``."""
    order = list(Severity)
    return max((problem.severity for problem in problems), key=order.index, default=Severity.GOOD)


def problems_of(status: ServiceStatus, *, lag_problem: str, word: str) -> list[Problem]:
    """Return what is wrong with a service, the worst first. ``word`` is who paused it, when and why."""
    found = [*_workers(status, word), *_events(status)]
    if lag_problem:
        found.append(Problem(Severity.BAD, f"The broker does not answer: {lag_problem}"))
    order = list(Severity)
    return sorted(found, key=lambda problem: -order.index(problem.severity))


def _workers(status: ServiceStatus, word: str) -> list[Problem]:
    found = []
    if status.relay_paused:
        found.append(Problem(Severity.WARN, f"The relay is paused ({word})."))
    elif not status.relays and status.counts[Status.PENDING].value:
        found.append(Problem(Severity.BAD, "Events are pending and no relay runs."))
    for role, workers in (("relay", status.relays), ("consumer", status.consumers)):
        for each in workers:
            if each.is_hung and each.moved_ago is not None:
                text = f"The {role} {each.host}:{each.pid} lives and has not moved for {humanise(each.moved_ago)}."
                found.append(Problem(Severity.BAD, text))
    if status.consumer_paused:
        found.append(Problem(Severity.WARN, f"The consumer is paused ({word})."))
    elif not status.consumers and status.counts[Status.PUBLISHED].value:
        found.append(Problem(Severity.BAD, "Events are published and no consumer runs."))
    return found


def _events(status: ServiceStatus) -> list[Problem]:
    found = []
    age = status.oldest_due_age
    if age is not None and age >= SLOW_AFTER and not status.relay_paused:
        severity = Severity.BAD if age >= STUCK_AFTER else Severity.WARN
        found.append(Problem(severity, f"The oldest event that is due waits for {humanise(age)}."))
    dead = status.counts[Status.DEAD]
    if dead.value:
        plural = "event is" if dead.value == 1 else "events are"
        found.append(Problem(Severity.BAD, f"{dead} {plural} dead and open."))
    if status.open_rejected.value:
        plural = "record was" if status.open_rejected.value == 1 else "records were"
        found.append(Problem(Severity.WARN, f"{status.open_rejected} broker {plural} rejected."))
    for other in status.other_installations:
        text = (
            f"Records of another installation came ({other.records:,}, {visible(other.installation)}): it shares topic"
            f" and consumer group, and each takes records of the other. Give each a NAMESPACE of its own."
        )
        found.append(Problem(Severity.BAD, text))
    if status.foreign.value:
        found.append(Problem(Severity.WARN, f"{status.foreign} rows belong to other services: run rehome_outbox."))
    if status.ahead_of_time.value:
        text = f"{status.ahead_of_time} rows were written with times in the future: a writer's session is not in UTC."
        found.append(Problem(Severity.WARN, text))
    return found
