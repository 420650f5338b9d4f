"""A progress bar on a terminal; a line now and then where the output is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

_WIDTH: Final = 30
_REDRAW_S: Final = 0.1
_LINE_S: Final = 10.0


class ProgressBar:
    """Counts up to ``total``; draws at most ten times a second. ``clock`` gives monotonic seconds."""

    def __init__(self, total: int, label: str, *, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = max(total, 1)
        self._label = label
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._started_at = self._drawn_at = clock()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._draw()
        if self._is_terminal:
            self._stream.write("\n")

    def update(self, done: int) -> None:
        """Say how many are done."""
        self._done = done
        if self._clock() - self._drawn_at >= (_REDRAW_S if self._is_terminal else _LINE_S):
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        share = min(self._done / self._total, 1.0)
        spent_s = max(self._drawn_at - self._started_at, 0.001)
        text = f"{share:4.0%} {self._label} {self._done:,} of {self._total:,} ({self._done / spent_s:,.0f}/s)"
        if self._is_terminal:
            bar = "█" * int(share * _WIDTH)
            self._stream.write(f"\r{bar:░<{_WIDTH}} {text}\x1b[K")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
