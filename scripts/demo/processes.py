"""The demo's processes: real `manage.py` commands, ended by SIGTERM as an init system would."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from scripts.demo.errors import DemoError
from scripts.demo.stage import CHECKOUT, SERVICES, Stage

_PATIENCE_S = 30
_LITTLE_PATIENCE_S = 5
_LAST_LINES = 8


class Command:
    """A running `manage.py` command."""

    def __init__(self, stage: Stage, *arguments: str, log: Path | None = None, debug: bool = False) -> None:
        """Start it; its output goes to ``log``, or to the terminal."""
        self.name = arguments[0]
        self.line = f"manage.py {' '.join(arguments)}"
        self._log = log
        output = log.open("wb") if log else None
        try:
            # In a session of its own: Ctrl-C reaches the demo alone, which then ends its processes in order.
            self._process = subprocess.Popen(
                [stage.python, "manage.py", *arguments],
                cwd=CHECKOUT,
                env=stage.environment(debug=debug),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Say so when it has ended by itself.

        :raises DemoError: it has.
        """
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"`{self.line}` ended by itself with code {code}{self._said()}")

    def stop(self) -> None:
        """Ask it to end and wait.

        :raises DemoError: it did not end in time, or not well.
        """
        self._process.terminate()
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise DemoError(f"`{self.line}` did not end within {_PATIENCE_S} s of SIGTERM{self._said()}") from None
        if code != 0:
            raise DemoError(f"`{self.line}` ended with code {code} after SIGTERM{self._said()}")

    def end(self) -> None:
        """End it, if it still runs, with little patience and no questions."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_LITTLE_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def summary(self) -> list[str]:
        """Return what it said at its end of what it had done, a line for each of its services."""
        said = [line for line in self._lines() if line.startswith(tuple(f"{service}: " for service in SERVICES))]
        return said or ["said nothing"]

    def _said(self) -> str:
        if self._log is None:
            return ""
        return "; it said last:\n" + "\n".join(f"    {line}" for line in self._lines()[-_LAST_LINES:])

    def _lines(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log else []


@contextmanager
def workers(stage: Stage) -> Iterator[Sequence[Command]]:
    """Run the relays in one process and the consumers in one each; none of them outlives the block."""
    running: list[Command] = []
    # Any may be the first to need its topic; a broker without topics takes no notice.
    try:
        running.append(Command(stage, "run_relay", "--create-topics", log=stage.folder / "relay.log"))
        for service in SERVICES:
            log = stage.folder / f"consumer-{service}.log"
            running.append(Command(stage, "consume", service, "--create-topics", log=log))
        yield running
    finally:
        for each in running:
            each.end()


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that processes are ended on the way out."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
