"""What every server can do, whoever runs it, and those that we run by hand."""

from __future__ import annotations

import abc
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from scripts.services import packages, ports
from scripts.services.catalog import Service
from scripts.services.errors import NotManagedError, NotReadyError, ServicesError
from scripts.services.process import Process, spawn
from scripts.services.state import State

BIGGEST_LOG_BYTES = 20 * 1024 * 1024


class Server(abc.ABC):
    """A server under one of our names."""

    def __init__(self, service: Service, state: State) -> None:
        """Stand for the service; do nothing yet."""
        self.service = service
        self.state = state

    @property
    @abc.abstractmethod
    def managed(self) -> bool:
        """Whether we may start and stop it."""

    @property
    @abc.abstractmethod
    def address(self) -> str | None:
        """The value of the service's variable; None while there is none."""

    @abc.abstractmethod
    def install(self) -> None:
        """Get the programs."""

    @abc.abstractmethod
    def up(self) -> None:
        """Make it run, from whatever state it is in, and return when it serves."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it again with the port and the data that it had; return when it serves."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it as its own tools would; return when it is gone."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it as a power failure would; return when it is gone."""

    @abc.abstractmethod
    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Let it go on after `pause`."""

    @abc.abstractmethod
    def status(self) -> str:
        """Say in one line how it is."""

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()


class GivenServer(Server):
    """A server that somebody else runs; all we know is its address."""

    deadline_seconds: ClassVar[float] = 30.0

    def __init__(self, service: Service, state: State, *, address: str) -> None:
        """Take the address as it is."""
        super().__init__(service, state)
        self._address = address

    @property
    def managed(self) -> bool:
        return False

    @property
    def address(self) -> str | None:
        return self._address

    def install(self) -> None:
        """Nothing to get."""

    def up(self) -> None:
        ports.wait_until_one_answers(
            self._address, variable=self.service.variable, deadline_seconds=self.deadline_seconds
        )

    def start(self) -> None:
        raise self._refusal("started")

    def stop(self) -> None:
        raise self._refusal("stopped")

    def kill(self) -> None:
        raise self._refusal("killed")

    def pause(self) -> None:
        raise self._refusal("paused")

    def resume(self) -> None:
        raise self._refusal("resumed")

    def status(self) -> str:
        up = any(ports.answers(host, port) for host, port in ports.endpoints(self._address))
        return f"{'answers' if up else 'does not answer'}, given by {self.service.variable}"

    def _refusal(self, verb: str) -> NotManagedError:
        return NotManagedError(f"{self.service.name} is given by {self.service.variable}; it is not {verb} from here.")


class NativeServer(Server):
    """A server that we run by hand from installed packages, in a data folder of our own."""

    package_group: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_deadline_seconds: ClassVar[float] = 120.0
    stop_deadline_seconds: ClassVar[float] = 60.0

    @property
    def managed(self) -> bool:
        return True

    @property
    def address(self) -> str | None:
        return self.state.address

    @property
    def port(self) -> int:
        """The port for clients."""
        return self.state.ports["client"]

    def install(self) -> None:
        packages.ensure(self.package_group)

    def up(self) -> None:
        with self.state.locked():
            if not self._runs():
                self._choose_ports()
                self._start()
            self._await_ready(self._process())

    def start(self) -> None:
        with self.state.locked():
            if not self.state.ports:
                raise ServicesError(f"{self.service.name} was never set up; run `up {self.service.name}` first.")
            if not self._runs():
                self._start()
            self._await_ready(self._process())

    def stop(self) -> None:
        with self.state.locked():
            process = self._process()
            if process is None or not process.runs():
                return self._forget_process()
            process.signal_tree(signal.SIGCONT)
            if not process.end(self.stop_signal, deadline_seconds=self.stop_deadline_seconds):
                process.kill()
                raise NotReadyError(
                    f"{self.service.name} did not end within {self.stop_deadline_seconds:g} s of "
                    f"{self.stop_signal.name}, so it was killed.",
                    log=self.state.log,
                )
            self._forget_process()
            return None

    def kill(self) -> None:
        with self.state.locked():
            if process := self._process():
                process.kill()
            self._forget_process()

    def pause(self) -> None:
        self._running_process().signal_tree(signal.SIGSTOP)

    def resume(self) -> None:
        self._running_process().signal_tree(signal.SIGCONT)

    def status(self) -> str:
        process = self._process()
        if process is None:
            return "stopped"
        if not process.runs():
            return f"gone (process {process.pid} ended by itself; see {self.state.log})"
        how = "serves" if self.is_ready() else "runs but does not serve"
        return f"{how} on {ports.LOOPBACK}:{self.port}, process {process.pid}, log {self.state.log}"

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Ask the server itself whether it serves clients."""

    @abc.abstractmethod
    def set_up(self) -> None:
        """Make the data folder, unless it is there, and write the configuration."""

    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """The command line of the server."""

    @property
    def user(self) -> str | None:
        """Whom the server runs as; None for ourselves."""
        return None

    @property
    def environment(self) -> Mapping[str, str]:
        """What the server needs beside our own environment."""
        return {}

    def finish_set_up(self) -> None:
        """Do what needs the running server."""

    def _choose_ports(self) -> None:
        known = self.state.ports
        chosen: dict[str, int] = {}
        for purpose, preferred in self.service.ports.items():
            port = known.get(purpose, preferred)
            if not ports.is_free(port):
                port = ports.pick(preferred, taken=chosen.values())
            chosen[purpose] = port
        self.state.remember(ports=chosen, backend="native")

    def _start(self) -> None:
        for purpose, port in self.state.ports.items():
            if not ports.is_free(port):
                raise ServicesError(
                    f"{self.service.name}'s {purpose} port {port} is taken by another program; "
                    f"end that, or run `up {self.service.name}` to move to a free port."
                )
        self.set_up()
        _shorten(self.state.log)
        process = spawn(self.command(), log=self.state.log, cwd=self.state.folder, user=self.user, env=self.environment)
        process.write(self.state.process_file)

    def _await_ready(self, process: Process | None) -> None:
        end = time.monotonic() + self.start_deadline_seconds
        while not self.is_ready():
            if process is None or not process.runs():
                raise NotReadyError(f"{self.service.name} ended while it was starting.", log=self.state.log)
            if time.monotonic() > end:
                raise NotReadyError(
                    f"{self.service.name} does not serve {self.start_deadline_seconds:g} s after its start.",
                    log=self.state.log,
                )
            time.sleep(0.1)
        self.finish_set_up()

    def _process(self) -> Process | None:
        return Process.read(self.state.process_file)

    def _runs(self) -> bool:
        process = self._process()
        return process is not None and process.runs()

    def _running_process(self) -> Process:
        process = self._process()
        if process is None or not process.runs():
            raise ServicesError(f"{self.service.name} does not run.")
        return process

    def _forget_process(self) -> None:
        self.state.process_file.unlink(missing_ok=True)


def _shorten(log: Path) -> None:
    """Begin a new log when the old one has grown large, keeping that one."""
    if log.exists() and log.stat().st_size > BIGGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
