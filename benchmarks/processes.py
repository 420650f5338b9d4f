"""Processes of the project, started for real and looked at from outside, by what the kernel says of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
_TROUBLE: Final = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) |^ *Traceback |^CommandError", re.MULTILINE)
_WARNING: Final = re.compile(r"^\S+ \S+ WARNING .*$", re.MULTILINE)
_LOOK_S: Final = 0.02
ANSWER: Final = "ANSWER "


@dataclass(frozen=True, slots=True)
class Sample:
    """How large a process is at one moment, in KiB."""

    rss: int
    pss: int
    """As RSS, but for a page that others map too its share only."""
    uss: int
    """What is mapped by nobody else: what ending the process would give back."""
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process came to its end."""

    code: int
    peak_kib: int
    """Its largest RSS, as the kernel kept it. One below our own at the start is not seen: we are small on purpose."""
    seconds: float


class Process:
    """One process; what it writes goes into ``log``."""

    def __init__(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self.ended: Ended | None = None
        self._started = time.monotonic()
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Say whether it runs, and take note of how it ended when it does not."""
        if self.ended is None:
            # Not by the subprocess module: it would throw the kernel's accounts away.
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._popen.returncode = os.waitstatus_to_exitcode(status)
                self.ended = Ended(self._popen.returncode, usage.ru_maxrss, time.monotonic() - self._started)
        return self.ended is None

    @property
    def text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> int:
        """Count the errors and tracebacks in its log."""
        return len(_TROUBLE.findall(self.text))

    @property
    def warnings(self) -> list[str]:
        """Return the warnings in its log; an outage is one, and spoils a measurement."""
        return _WARNING.findall(self.text)

    def sample(self) -> Sample:
        """Look at it.

        :raises OSError: it is gone.
        """
        proc = Path(f"/proc/{self.pid}")
        sizes = _fields((proc / "smaps_rollup").read_text())
        return Sample(
            rss=sizes["Rss"],
            pss=sizes["Pss"],
            uss=sizes["Private_Clean"] + sizes["Private_Dirty"],
            descriptors=len(list((proc / "fd").iterdir())),
            threads=len(list((proc / "task").iterdir())),
        )

    @property
    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds.

        :raises OSError: it is gone.
        """
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def answer(self) -> Any:
        """Return what it printed as its result, a line of JSON behind ``ANSWER``."""
        lines = [line for line in self.text.splitlines() if line.startswith(ANSWER)]
        if not lines:
            raise RuntimeError(f"{self.name} has given no answer:\n{self.text[-4000:]}")
        return json.loads(lines[-1].removeprefix(ANSWER))

    def wait(self, *, timeout_s: float) -> Ended:
        """Wait until it ends by itself, with exit code 0.

        :raises RuntimeError: it does not, or with another code.
        """
        deadline = time.monotonic() + timeout_s
        while self.is_alive:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} has not ended within {timeout_s:g} s:\n{self.text[-4000:]}")
            time.sleep(_LOOK_S)
        assert self.ended is not None
        if self.ended.code:
            raise RuntimeError(f"{self.name} ended with exit code {self.ended.code}:\n{self.text[-4000:]}")
        return self.ended

    def stop(self, *, timeout_s: float = 60.0) -> Ended:
        """Ask it to end, and wait for that as ``wait`` does."""
        if self.is_alive:
            os.kill(self.pid, signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def dispose(self) -> None:
        """End it whatever it does."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            while self.is_alive:
                time.sleep(_LOOK_S)


def _fields(text: str) -> dict[str, int]:
    """Read the lines of the form ``Name: 12 kB``."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
