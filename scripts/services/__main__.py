"""The command line: `python3 -m scripts.services COMMAND [NAME ...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from scripts.services import catalog, docker, inventory, packages
from scripts.services.errors import ServicesError, UnobtainableError
from scripts.services.server import Server

OPTIONAL_VARIABLE = "MYSQL"
"""Set to `optional`: where MySQL is not in the cache and cannot be fetched, the other servers run without it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; say what failed and give 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ServicesError as error:
        print(f"services: {error}", file=sys.stderr)
        return 1
    return 0


def up(options: argparse.Namespace) -> None:
    """Make servers run."""
    servers = [server for server in _servers(options) if _install(server)]
    _for_each(servers, lambda server: server.up())
    inventory.write_environment_file()
    for server in servers:
        print(f"{server.service.name}: {server.status()}")


def down(options: argparse.Namespace) -> None:
    """Stop servers that we run; leave given ones alone."""
    servers = [server for server in _servers(options) if server.managed and server.address is not None]
    _for_each(servers, lambda server: server.stop())
    if options.purge:
        for server in servers:
            if isinstance(server, docker.ComposeServer):
                server.remove()
            server.state.remove()
        inventory.forget_if_empty()


def status(options: argparse.Namespace) -> None:
    """Say how servers are."""
    for server in _servers(options):
        print(f"{server.service.name}: {'not set up' if server.address is None else server.status()}")


def env(_options: argparse.Namespace) -> None:
    """Print the variables."""
    lines = inventory.environment_lines()
    if not lines:
        raise ServicesError("No server has been set up; run `up` first.")
    print("\n".join(lines))


def install_packages(options: argparse.Namespace) -> None:
    """Install groups of system packages."""
    packages.ensure(*options.groups)


def _install(server: Server) -> bool:
    """Get a server's programs, one server after the other: the package manager lets one in at a time.

    Say whether they are there. Only MySQL may be missing, where that is allowed: an older system cannot fetch it.
    """
    try:
        server.install()
    except UnobtainableError as error:
        if server.service is not catalog.MYSQL or os.environ.get(OPTIONAL_VARIABLE) != "optional":
            raise
        server.state.forget_ports()
        print(f"{server.service.name}: not run. {error}", file=sys.stderr)
        return False
    return True


def _change(change: Callable[[Server], None]) -> Callable[[argparse.Namespace], None]:
    return lambda options: _for_each([inventory.server(options.name)], change)


def _for_each(servers: Sequence[Server], change: Callable[[Server], None]) -> None:
    """Change servers side by side; report every failure, not just the first."""
    failures: list[str] = []

    def attempt(server: Server) -> None:
        try:
            change(server)
        except ServicesError as error:
            failures.append(f"{server.service.name}: {error}")

    with ThreadPoolExecutor(max_workers=max(len(servers), 1)) as pool:
        list(pool.map(attempt, servers))
    if failures:
        raise ServicesError("\n".join(failures))


def _servers(options: argparse.Namespace) -> list[Server]:
    return [inventory.server(name) for name in options.names or catalog.SERVICES]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m scripts.services", description="Servers for tests and the demo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def several(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        names = ", ".join(catalog.SERVICES)
        command.add_argument("names", nargs="*", metavar="NAME", help=f"{names}; all when none is named")
        command.set_defaults(run=run)
        return command

    several("up", up, "make servers run, installing what is missing, and write their addresses to .services.env")
    several("status", status, "say how servers are")
    stopping = several("down", down, "stop the servers that `up` started")
    stopping.add_argument("--purge", action="store_true", help="remove their data too")

    commands.add_parser("env", help="print KEY=VALUE lines with the servers' addresses").set_defaults(run=env)

    groups = commands.add_parser("packages", help="install groups of system packages")
    groups.add_argument("groups", nargs="*", default=["test"], metavar="GROUP", help=", ".join(packages.GROUPS))
    groups.set_defaults(run=install_packages)

    for name, change, text in (
        ("start", lambda server: server.start(), "start a server with the port and the data that it had"),
        ("stop", lambda server: server.stop(), "stop a server in good order"),
        ("kill", lambda server: server.kill(), "kill a server"),
        ("restart", lambda server: server.restart(), "stop and start a server"),
        ("pause", lambda server: server.pause(), "freeze a server"),
        ("resume", lambda server: server.resume(), "let a frozen server go on"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("name", choices=tuple(catalog.SERVICES))
        command.set_defaults(run=_change(change))
    return parser


if __name__ == "__main__":
    sys.exit(main())
