"""``outbox_status`` for people: one line a service, and below what needs more words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from django.utils import timezone
from rich.console import RenderableType
from rich.text import Text

from outbox.lifecycle import Status
from outbox.log_text import one_line
from outbox.management.console import table
from outbox.management.status_report import ServiceReport, databases_away
from outbox.operations.durations import humanise
from outbox.operations.statistics import ServiceStatus, WorkerStatus

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
_BAD, _NOTE = "bold red", "yellow"


class TableView:
    """The reports as a table; ``dated`` puts the time above it."""

    def __init__(self, *, dated: bool) -> None:
        self._dated = dated

    def parts(self, reports: Sequence[ServiceReport]) -> list[RenderableType]:
        """Return what to show, from top to bottom."""
        parts: list[RenderableType] = [f"{timezone.localtime():%Y-%m-%d %H:%M:%S}"] if self._dated else []
        parts.append(table(_HEADER, [_cells(report) for report in reports], right=_RIGHT))
        if away := databases_away(reports):
            parts.append(Text(f"database unavailable: {away}", _BAD))
        if problem := next((each.broker_problem for each in reports), ""):
            parts.append(Text(f"broker unavailable, lag unknown: {problem}", _BAD))
        return parts


def _cells(report: ServiceReport) -> tuple[str | Text, ...]:
    status = report.status
    if status is None:
        return (report.route.service, *"?????", _lag(report), "?", "?", Text("database unavailable", _BAD))
    dead = status.counts[Status.DEAD]
    return (
        report.route.service,
        *(str(status.counts[each]) for each in (Status.PENDING, Status.PUBLISHED, Status.CONSUMED)),
        Text(str(dead), _BAD if dead.value else ""),
        "-" if status.oldest_due_age is None else humanise(status.oldest_due_age),
        _lag(report),
        _workers(status.relays),
        _workers(status.consumers),
        Text(_notes(report, status), _NOTE),
    )


def _lag(report: ServiceReport) -> str:
    if report.broker_problem:
        return "?"
    return "-" if report.lag is None else f"{report.lag:,}"


def _workers(workers: Sequence[WorkerStatus]) -> Text:
    """Say how many there are and, where they lease shards, who holds how many: ``2 (8+8)``."""
    shards = "+".join(str(worker.shards) for worker in workers)
    text = f"{len(workers)} ({shards})" if any(worker.shards for worker in workers) else str(len(workers))
    return Text(text, "" if workers else _BAD)


def _notes(report: ServiceReport, status: ServiceStatus) -> str:
    dead = f"{status.counts[Status.DEAD]} dead to look at"
    found = (
        ("relay paused", status.relay_paused),
        ("consumer paused", status.consumer_paused),
        ("no relay runs", not status.relays),
        ("no consumer runs", not status.consumers),
        *(
            (f"{role} {each.host}:{each.pid} hangs", each.is_hung)
            for role, workers in (("relay", status.relays), ("consumer", status.consumers))
            for each in workers
        ),
        (f"{dead}, which hold back their keys" if status.parks_a_key else dead, status.counts[Status.DEAD].value > 0),
        (f"{status.open_rejected} rejected", status.open_rejected.value > 0),
        *(
            (f"{each.records:,} records of installation {one_line(each.installation)}: NAMESPACE is shared", True)
            for each in status.other_installations
        ),
        (f"{status.foreign} foreign rows: rehome them", status.foreign.value > 0),
        (f"{status.ahead_of_time} rows written in another time zone", status.ahead_of_time.value > 0),
        ("stalled", "stalled" in report.attention),
    )
    return ", ".join(words for words, is_so in found if is_so)
