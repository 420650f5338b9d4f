"""The wall clocks of workers: libfaketime reads from a file how far each is off, and the file may change at any time.

The monotonic clock stays as it is, as it does when somebody sets a machine's clock.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from scripts.services.errors import ServicesError

_PACKAGE: Final = "libfaketime"
_LIBRARY: Final = "libfaketimeMT.so.1"
_PLACES: Final = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")

_SHARED_MEMORY: Final = Path("/dev/shm")

_SHORTEST_JUMP_S: Final = 2.0
_LONGEST_JUMP_S: Final = 12 * 3600.0

_STAMP: Final = "%Y-%m-%d %H:%M:%S"
_STAMP_LENGTH: Final = len("2000-01-01 00:00:00")
_STAMP_TOLERANCE_S: Final = 0.5
"""A stamp is cut off to the second."""


def jump_s(dice: float) -> float:
    """Return how far a clock jumps: seconds as often as minutes and hours, forward as often as back."""
    chance = random.Random(dice)
    length_s = math.exp(chance.uniform(math.log(_SHORTEST_JUMP_S), math.log(_LONGEST_JUMP_S)))
    return round(length_s * chance.choice((1, -1)), 1)


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock of one process."""

    file: Path

    def put(self, off_s: float) -> None:
        """Have the process see a clock that is off by so much, from its very next look on."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{off_s:+.1f}\n")
        fresh.replace(self.file)

    @property
    def environment(self) -> Mapping[str, str]:
        """Return what a process is started with whose clock this is to be."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # With the fix, which this glibc does not need, waits for Python's interpreter lock end at once, again and
            # again: two busy threads take ten times as long.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }


def make_clock(file: Path) -> Clock:
    """Return a clock that is right so far."""
    clock = Clock(file)
    clock.put(0)
    return clock


def check_jumps(folder: Path) -> None:
    """Have a process of this Python tell the time before and after a jump, so that no run is for nothing.

    :raises ServicesError: its clock does not jump, or the wrong one does.
    """
    sweep()
    clock = make_clock(folder / "clock-check")
    code = "import time\nfor _ in range(2): print(time.time(), time.monotonic(), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        before = process.stdout.readline().split()
        clock.put(7200)
        process.stdin.write("\n")
        process.stdin.flush()
        after = process.stdout.readline().split()
        process.kill()
        said = process.stderr.read()
    jumped = [float(late) - float(early) for early, late in zip(before, after, strict=False)]
    if len(jumped) != 2 or not (abs(jumped[0] - 7200) < 60 and abs(jumped[1]) < 60):
        raise ServicesError(f"{_LIBRARY} does not move the wall clock alone: {jumped}\n{said}")


def sweep(folder: Path = _SHARED_MEMORY) -> None:
    """Remove what killed processes have left: libfaketime ends a process that finds something under its own id."""
    for path in folder.glob("*faketime_s*_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not (Path("/proc") / pid).exists():
            with suppress(OSError):
                path.unlink()


def shifted_lines(text: str, *, off_s: float, since: datetime) -> tuple[int, bool]:
    """Say how many lines of a log have a time, and whether the last of them is as far off as the clock is.

    ``text`` was written after ``since``, with times in UTC.
    """
    stamps = [stamp for line in text.splitlines() if (stamp := _stamp(line)) is not None]
    if not stamps:
        return 0, False
    now = datetime.now(UTC)
    late_s = (stamps[-1] - since).total_seconds() - off_s
    return len(stamps), -1 - _STAMP_TOLERANCE_S <= late_s <= (now - since).total_seconds() + _STAMP_TOLERANCE_S


def _stamp(line: str) -> datetime | None:
    try:
        return datetime.strptime(line[:_STAMP_LENGTH], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def _library() -> Path:
    for place in _PLACES:
        for path in sorted(Path("/").glob(f"{place[1:]}/{_LIBRARY}")):
            return path
    raise ServicesError(f"{_LIBRARY} is missing: install Debian's package {_PACKAGE} (`packages test` does).")
