"""For tests: take a server away from under running clients, and give it back on the same port with the same data."""

from __future__ import annotations

from scripts.services import inventory


def is_managed(name: str) -> bool:
    """Say whether the server may be stopped: not when an environment variable gives it, nor before its first `up`."""
    server = inventory.server(name)
    return server.managed and server.address is not None


def address(name: str) -> str | None:
    """Give the value of the server's variable; None when it has not been set up."""
    return inventory.server(name).address


def start(name: str) -> None:
    """Start the server; return when it serves."""
    inventory.server(name).start()


def stop(name: str) -> None:
    """Stop the server in good order; return when it is gone."""
    inventory.server(name).stop()


def kill(name: str) -> None:
    """Kill the server; return when it is gone."""
    inventory.server(name).kill()


def restart(name: str) -> None:
    """Stop the server in good order and start it; return when it serves."""
    inventory.server(name).restart()


def pause(name: str) -> None:
    """Freeze the server: its connections stay open and nothing answers. Follow with `resume`."""
    inventory.server(name).pause()


def resume(name: str) -> None:
    """Let a frozen server go on."""
    inventory.server(name).resume()
