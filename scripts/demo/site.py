"""The admin on the last demo's data, with relays and consumers: what is sent again there is consumed."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from scripts.demo.errors import DemoError
from scripts.demo.processes import Command, workers
from scripts.demo.stage import last_stage

_HOST = "127.0.0.1"
_LOOK_S = 0.5


def serve(folder: Path, *, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM.

    :raises DemoError: there is no demo to serve, the port is taken, or a process ended by itself.
    """
    stage = last_stage(folder)
    if stage is None:
        raise DemoError("there is no demo to look at yet: run `make demo` first.")
    if not Path(stage.python).exists():
        raise DemoError(f"the last demo's Python, {stage.python}, is gone: run the demo again.")
    _check_port(port)
    with workers(stage) as running:
        site = Command(stage, "runserver", "--noreload", f"{_HOST}:{port}", debug=True)
        try:
            print(f"The admin is at http://{_HOST}:{port}/admin/ ({stage.description}). Ctrl-C stops everything.")
            print(f"Relays and consumers write to {folder}/*.log.", flush=True)
            while True:
                for command in (*running, site):
                    command.check()
                time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            print("\nStopping …")
            for command in running:
                command.stop()
        finally:
            site.end()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise DemoError(f"port {port} is not free ({error.strerror}); choose one with --port.") from error
