"""Writes the statements of a process into a file of its own: each once, with numbers and repetitions taken out.

A consumer also comes by the point ``effects``: its handlers have written, its events are not marked, nothing is
committed. It stays there while the test wants it, as it does at the points of ``tests.acceptance.probe.brokers``.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

from tests.acceptance.probe.brokers import hold

VARIABLE = "WATCH_FOLDER"
_MARKS_CONSUMED = "consumed_at = "
_REPETITIONS = re.compile(r"(\((?:[^()]|\([^()]*\))*\))(?:,\s*\1)+")


def install() -> None:
    """Watch every connection that is opened from now on."""
    connection_created.connect(_watch, dispatch_uid=__name__)


def path_of(folder: Path, pid: int) -> Path:
    """Return the file of the process ``pid``."""
    return folder / f"{pid}.sql"


def read(folder: Path, pid: int) -> list[str]:
    """Return the distinct statements of the process ``pid``."""
    path = path_of(folder, pid)
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def shape(sql: str) -> str:
    """Return ``sql`` on one line, without its numbers and the length of its lists."""
    one_line = " ".join(re.sub(r"\b\d+\b", "N", sql).split())
    return _REPETITIONS.sub(r"\1", re.sub(r"(N|%s)(?:, ?\1)+", r"\1", one_line))


class _Watcher:
    """An ``execute_wrapper`` that all connections of the process share."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        self._note(shape(str(sql)))
        if _MARKS_CONSUMED in str(sql):
            hold("effects")
        return execute(sql, params, many, context)

    def _note(self, statement: str) -> None:
        with self._lock:
            if statement in self._seen:
                return
            self._seen.add(statement)
            path = path_of(Path(os.environ[VARIABLE]), os.getpid())
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{statement}\n".encode())
            finally:
                os.close(descriptor)


_watcher = _Watcher()


def _watch(*, connection: Any, **_: Any) -> None:
    # A connection that is opened again keeps its wrappers.
    if _watcher not in connection.execute_wrappers:
        connection.execute_wrappers.append(_watcher)
