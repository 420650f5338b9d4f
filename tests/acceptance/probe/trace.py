"""What handlers began and ended, rolled back or not: lines in a file, outside of every transaction."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PROBE_TRACE"


@dataclass(frozen=True, slots=True)
class Mark:
    """One line: a handler began or ended with one event."""

    what: str
    outbox_id: int
    attempt: int
    pid: int


def note(what: str, outbox_id: int, attempt: int) -> None:
    """Append a line, whole or not at all, also when the process is killed right after."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{what} {outbox_id} {attempt} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Mark]:
    """Return the lines of ``path`` in the order in which they were written."""
    if not path.exists():
        return []
    fields = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Mark(what, int(outbox_id), int(attempt), int(pid)) for what, outbox_id, attempt, pid in fields]
