"""``outbox_status`` for people: one line a service, and below what needs more words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from django.utils import timezone

from outbox.lifecycle import Status
from outbox.management.reporting import humanise, table
from outbox.management.status_report import ServiceReport
from outbox.statistics import ServiceStatus, WorkerStatus

_HEADER: Final = (
    "SERVICE",
    "PENDING",
    "PUBLISHED",
    "CONSUMED",
    "DEAD",
    "OLDEST DUE",
    "LAG",
    "RELAYS",
    "CONSUMERS",
    "NOTES",
)
_RIGHT: Final = ("PENDING", "PUBLISHED", "CONSUMED", "DEAD", "OLDEST DUE", "LAG")


class TableView:
    """The reports as a table; ``dated`` puts the time above it."""

    def __init__(self, *, dated: bool) -> None:
        self._dated = dated

    def show(self, reports: Sequence[ServiceReport]) -> str:
        lines = [table(_HEADER, [_cells(report) for report in reports], right=_RIGHT)]
        for problem in dict.fromkeys(report.status.lag_problem for report in reports):
            if problem:
                lines.append(f"lag unknown: {problem}")
        return self._under_date("\n".join(lines))

    def say_away(self, problem: str) -> str:
        return self._under_date(f"database error: {problem}")

    def _under_date(self, text: str) -> str:
        return f"{timezone.localtime():%Y-%m-%d %H:%M:%S}\n{text}" if self._dated else text


def _cells(report: ServiceReport) -> tuple[str, ...]:
    status = report.status
    return (
        status.route.service,
        *(str(status.counts[each]) for each in (Status.PENDING, Status.PUBLISHED, Status.CONSUMED, Status.DEAD)),
        "-" if status.oldest_due_age is None else humanise(status.oldest_due_age),
        _lag(status),
        _workers(status.relays),
        _workers(status.consumers),
        _notes(report),
    )


def _lag(status: ServiceStatus) -> str:
    if status.lag_problem:
        return "?"
    return "-" if status.lag is None else f"{status.lag:,}"


def _workers(workers: Sequence[WorkerStatus]) -> str:
    """Say how many there are and, where they lease shards, who holds how many: ``2 (8+8)``."""
    shards = "+".join(str(worker.shards) for worker in workers)
    return f"{len(workers)} ({shards})" if any(worker.shards for worker in workers) else str(len(workers))


def _notes(report: ServiceReport) -> str:
    status = report.status
    found = (
        ("relay paused", status.relay_paused),
        ("consumer paused", status.consumer_paused),
        (f"{status.counts[Status.DEAD]} dead to look at", status.counts[Status.DEAD].value > 0),
        (f"{status.open_rejected} rejected", status.open_rejected.value > 0),
        (f"{status.foreign} foreign rows: rehome them", status.foreign.value > 0),
        ("stalled", "stalled" in report.attention),
    )
    return ", ".join(words for words, is_so in found if is_so)
