"""How far the events are: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from django.db.models import Count, Q, QuerySet

from outbox.registry.catalog import service_models

_REDRAW_S = 0.1
_PLAIN_LINE_S = 1.0
_WIDTH_MIN, _WIDTH_MAX = 8, 40


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
    """Shows ``Counts`` of ``total`` rows, no more often than is of use."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_terminal = sys.stdout.isatty()
        self._every_s = _REDRAW_S if self._is_terminal else _PLAIN_LINE_S
        self._shown_at = time.monotonic()
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal and self._last:
            print()

    @property
    def due(self) -> bool:
        """Say whether it is time to show something: counting costs the database some work."""
        return time.monotonic() - self._shown_at >= self._every_s

    def show(self, counts: Counts) -> None:
        """Show ``counts``."""
        text = (
            f"published {counts.published:,} · relayed {counts.relayed:,} · consumed {counts.consumed:,}"
            f" · dead {counts.dead:,}"
        )
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns - 1
            width = min(_WIDTH_MAX, max(_WIDTH_MIN, columns - len(text) - len("  [] ")))
            filled = min(width, width * counts.finished // max(1, self._total))
            line = f"  [{'█' * filled}{'░' * (width - filled)}] {text}"[:columns]
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif text != self._last:
            print(f"  {text}", flush=True)
        self._last = text
        self._shown_at = time.monotonic()
