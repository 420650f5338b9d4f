"""What people see of a command: tables, colours and progress bars on a terminal, plain lines anywhere else.

Plain lines have no colours, are never wrapped or cut, and end without blanks: they can be searched and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

_NO_LIMIT: Final = 1_000_000
"""Columns of an output that is no terminal."""

_GAP: Final = 2

_NARROWEST: Final = 30
"""A cell of several lines is not narrower than that."""


def console_on(out: IO[str], *, color: bool | None = None) -> Console:
    """Return a console that writes to ``out``.

    ``color`` is for the options ``--force-color`` and ``--no-color``; None colours where ``out`` is a terminal.
    """
    is_terminal = out.isatty()
    return Console(
        file=out,
        force_terminal=is_terminal,
        width=None if is_terminal else _NO_LIMIT,
        color_system="auto" if color is None else "standard" if color else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, right: Sequence[str] = (), wrapped: int = -1
) -> Table:
    """Return aligned columns; those whose header is in ``right`` are aligned on the right.

    ``wrapped`` is the index of the column whose cells have several lines where the terminal is too narrow.
    """
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for index, title in enumerate(header):
        width = max(cell_len(str(cell)) for cell in (title, *(row[index] for row in rows)))
        least = min(width, _NARROWEST) if index == wrapped % len(header) else width
        made.add_column(title, justify="right" if title in right else "left", overflow="fold", min_width=least)
    for row in rows:
        made.add_row(*row)
    return made


def show(console: Console, *parts: RenderableType) -> None:
    """Print ``parts`` below each other: tables, and texts of any length."""
    if console.is_terminal:
        _print(console, parts)
        return
    with console.capture() as shown:
        _print(console, parts)
    console.file.write("\n".join(line.rstrip() for line in shown.get().split("\n")))
    console.file.flush()


def _print(console: Console, parts: Sequence[RenderableType]) -> None:
    for part in parts:
        if isinstance(part, Table):
            least = sum(column.min_width or 0 for column in part.columns) + _GAP * (len(part.columns) - 1)
            part.width = least if least > console.width else None  # nothing is cut: the terminal breaks its lines
            console.print(part, crop=False)
        else:
            console.print(part, soft_wrap=isinstance(part, str | Text))


def busy(console: Console, label: str) -> Status:
    """Say what is waited for on a terminal while the block runs; for what has no known end."""
    return console.status(label, spinner="line")  # of characters that every terminal has


@contextmanager
def progress(console: Console, label: str, total: int, *, is_still: bool = False) -> Iterator[Callable[[int], None]]:
    """Draw a bar while the block runs, and take it away; yield the function to tell how many of ``total`` are done.

    What is printed to ``console`` meanwhile is above the bar. Where it is no terminal, no bar is drawn. One that
    ``is_still`` is drawn anew only when something is told or printed: between, it takes no processor time.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=not is_still,
        redirect_stderr=False,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done, refresh=is_still)
