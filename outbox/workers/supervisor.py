"""Runs many worker processes as one tree, for development: starts them, shows their output, starts them again.

A production system does this with its own means (systemd, Kubernetes, compose), one worker a unit.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TextIO

from outbox.coordination.shutdown import StopFlag
from outbox.declarations.backoff import RetryPolicy, delay

_RESTARTS: Final = RetryPolicy(base=timedelta(seconds=1), cap=timedelta(seconds=30), max_attempts=2**31, jitter=0)
_STABLE_AFTER_S: Final = 30.0
_STOP_WITHIN_S: Final = 30.0
_LAST_WORDS_S: Final = 2.0
_POLL: Final = timedelta(milliseconds=100)


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    failures: int = 0
    start_again_at: float = 0.0
    reader: threading.Thread | None = None


class Supervisor:
    """Keeps ``commands`` (by name) running until the flag is set; their lines go to ``out`` with the name in front."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        out: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._width = max((len(name) for name in commands), default=0)
        self._out = out
        self._clock = clock
        self._lock = threading.Lock()

    def run(self, stop: StopFlag) -> None:
        """Run until ``stop`` is set; then end every child by SIGTERM, by SIGKILL after 30 s."""
        try:
            while not stop.is_set:
                for child in self._children:
                    self._look_after(child)
                stop.wait(_POLL)
        finally:
            self._stop_all()

    def _look_after(self, child: _Child) -> None:
        if child.process is None:
            if self._clock() >= child.start_again_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            return
        self._hear_out(child)
        if self._clock() - child.started_at >= _STABLE_AFTER_S:
            child.failures = 0
        child.failures += 1
        pause = delay(child.failures, _RESTARTS, 0.0)
        self._say(child.name, f"ended with code {code}; starts again in {pause.total_seconds():.0f} s")
        child.process = None
        child.start_again_at = self._clock() + pause.total_seconds()

    def _start(self, child: _Child) -> None:
        child.process = subprocess.Popen(  # noqa: S603 - our own manage.py
            child.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C on a terminal goes to the whole group; the children are to get one signal, from here.
            start_new_session=True,
        )
        child.started_at = self._clock()
        self._say(child.name, f"started as process {child.process.pid}")
        child.reader = threading.Thread(target=self._copy, args=(child.name, child.process), daemon=True)
        child.reader.start()

    def _copy(self, name: str, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                self._say(name, line.rstrip("\n"))

    def _hear_out(self, child: _Child) -> None:
        """Let the last words of a process that has ended come first; one of its own children may keep the pipe open."""
        if child.reader is not None:
            child.reader.join(timeout=_LAST_WORDS_S)

    def _say(self, name: str, text: str) -> None:
        with self._lock:
            self._out.write(f"{name:<{self._width}} | {text}\n")
            self._out.flush()

    def _stop_all(self) -> None:
        running = [child for child in self._children if child.process is not None]
        for child in running:
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
        deadline = self._clock() + _STOP_WITHIN_S
        for child in running:
            if child.process is None:
                continue
            try:
                child.process.wait(timeout=max(0.1, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                self._say(child.name, "did not end by itself; killed")
                child.process.kill()
                child.process.wait()
            self._hear_out(child)
