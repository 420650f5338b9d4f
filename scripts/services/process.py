"""A server's process: started apart from us, recognised later, ended by its id."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.services import launcher
from scripts.services.errors import ServicesError
from scripts.services.state import read_json, write_atomically

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that we started: its id and its exact command line.

    Ids are reused; the id alone proves nothing after a crash or a restart of the machine.
    """

    pid: int
    argv: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Process | None:
        """Give the process that was written down, running or not."""
        found = read_json(path)
        pid, argv = found.get("pid"), found.get("argv")
        if not isinstance(pid, int) or not isinstance(argv, list):
            return None
        return cls(pid=pid, argv=tuple(map(str, argv)))

    def write(self, path: Path) -> None:
        """Write the process down."""
        write_atomically(path, json.dumps({"pid": self.pid, "argv": self.argv}) + "\n")

    def runs(self) -> bool:
        """Say whether the process is there, and is the one we started."""
        return command_line(self.pid) == self.argv and _status(self.pid) not in {"Z", "X", None}

    def signal_tree(self, number: signal.Signals) -> None:
        """Signal the process and all that it started; those that are gone already do not matter."""
        for pid in (self.pid, *descendants(self.pid)):
            _send(pid, number)

    def end(self, number: signal.Signals, *, deadline_seconds: float) -> bool:
        """Ask the process to end; say whether it did in time."""
        if self.runs():
            _send(self.pid, number)
        ended = self.wait_for_end(deadline_seconds=deadline_seconds)
        self.wait_for_burial()
        return ended

    def wait_for_end(self, *, deadline_seconds: float) -> bool:
        """Wait until the process is gone; say whether it went."""
        return _wait_until(lambda: not self.runs(), deadline_seconds=deadline_seconds)

    def wait_for_burial(self, *, deadline_seconds: float = 1.0) -> None:
        """Give the parent a moment to bury the dead process, so that its id is free; dead it is in any case."""
        _wait_until(lambda: _status(self.pid) != "Z", deadline_seconds=deadline_seconds)

    def kill(self, *, deadline_seconds: float = 20.0) -> None:
        """End the process and all that it started, at once and without a farewell."""
        if not self.runs():
            return
        family = [Process(pid, line) for pid in descendants(self.pid) if (line := command_line(pid))]
        self.signal_tree(signal.SIGKILL)
        for member in (self, *family):
            if not member.wait_for_end(deadline_seconds=deadline_seconds):
                raise ServicesError(f"Process {member.pid} is still there {deadline_seconds:g} s after SIGKILL.")
        self.wait_for_burial()


def spawn(
    argv: Sequence[str], *, log: Path, cwd: Path, user: str | None = None, env: Mapping[str, str] | None = None
) -> Process:
    """Start a program in a session of its own, its output going to `log`.

    It is no child of ours (a launcher starts it), so that neither a dead server stays as a zombie of the tests nor the
    end of the tests takes a living one along.
    """
    order = {"argv": list(argv), "log": str(log), "cwd": str(cwd), "user": user, "env": dict(env or {})}
    result = subprocess.run(
        [sys.executable, "-I", str(Path(launcher.__file__))],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ServicesError(f"Could not start {argv[0]}: {result.stderr.strip()}")
    return Process(pid=int(result.stdout), argv=tuple(argv))


def command_line(pid: int) -> tuple[str, ...] | None:
    """Give the process's command line, None when there is no such process."""
    try:
        text = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    return tuple(text.removesuffix("\0").split("\0")) if text else None


def descendants(pid: int) -> list[int]:
    """Give the processes that this one started, and theirs."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    queue = [pid]
    while queue:
        offspring = children.get(queue.pop(), [])
        found += offspring
        queue += offspring
    return found


def user_to_run_as(*wanted: str) -> pwd.struct_passwd | None:
    """Give the first of these users that exists when we are root (servers refuse to be); else None, ourselves."""
    if os.getuid() != 0:
        return None
    for name in wanted:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServicesError(f"A server must not run as root, and there is no user {' or '.join(wanted)}.")


def _wait_until(condition: Callable[[], bool], *, deadline_seconds: float) -> bool:
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _parents() -> Iterator[tuple[int, int]]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            yield int(entry.name), int(fields[1])


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _status(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
