"""How far the events are."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Final, Self

from django.db.models import Count, Q, QuerySet
from rich import progress
from rich.console import Console

from outbox.registry.catalog import service_models

_REDRAW_S: Final = 0.1
_TEXT: Final = (
    "published {task.fields[published]:,} · relayed {task.fields[relayed]:,} · consumed {task.fields[consumed]:,}"
    " · dead {task.fields[dead]:,}"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows of the table are how far."""

    published: int = 0
    relayed: int = 0
    consumed: int = 0
    dead: int = 0

    @property
    def finished(self) -> int:
        return self.consumed + self.dead


def count_rows() -> Counts:
    """Ask the outbox tables of all services."""
    counts = [
        QuerySet(model).aggregate(
            published=Count("id"),
            relayed=Count("published_at"),
            consumed=Count("id", filter=Q(status="consumed")),
            dead=Count("id", filter=Q(status="dead")),
        )
        for model in service_models().values()
    ]
    return Counts(**{name: sum(count[name] for count in counts) for name in counts[0]})


class Progress:
    """Shows ``Counts`` of ``total`` rows as a bar on a terminal, and not at all elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (progress.BarColumn(), progress.TextColumn(_TEXT, markup=False), progress.TimeElapsedColumn())
        self._is_shown = console.is_terminal
        self._bar = progress.Progress(*columns, console=console, disable=not self._is_shown)
        self._task = self._bar.add_task("", total=total, **asdict(Counts()))
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def due(self) -> bool:
        """Say whether it is time to show something: counting costs the database some work."""
        return self._is_shown and time.monotonic() - self._shown_at >= _REDRAW_S

    def show(self, counts: Counts) -> None:
        """Show ``counts``."""
        self._bar.update(self._task, completed=counts.finished, **asdict(counts))
        self._shown_at = time.monotonic()
