"""Loopback ports: which are free, which answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from scripts.services.errors import NotReadyError, ServicesError

LOOPBACK = "127.0.0.1"
_SEARCHED = 200


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def pick(preferred: int, *, taken: Collection[int] = ()) -> int:
    """Give the preferred port or the next free one.

    Never one that the kernel hands out to clients: a client could take it while the server is down for a moment.
    Every other one is left out: MariaDB's and MySQL's stand side by side and are chosen at the same time.
    """
    for port in range(preferred, preferred + _SEARCHED, 2):
        if port not in taken and is_free(port):
            return port
    raise ServicesError(f"No free port between {preferred} and {preferred + _SEARCHED - 1} on {LOOPBACK}.")


def answers(host: str, port: int, *, timeout_seconds: float = 1.0) -> bool:
    """Say whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def endpoints(address: str) -> Iterator[tuple[str, int]]:
    """Take the hosts and ports out of a database URL or a list of Kafka servers."""
    standard = {"mysql": 3306, "mariadb": 3306, "postgres": 5432, "postgresql": 5432}
    for part in address.split(",") if "://" not in address else [address]:
        try:
            url = urlsplit(part.strip() if "://" in part else f"//{part.strip()}")
            port = url.port or standard.get(url.scheme, 9092)
        except ValueError as error:
            raise ServicesError(f"Not an address: {part.strip()!r} ({error}).") from None
        yield url.hostname or LOOPBACK, port


def wait_until_one_answers(address: str, *, variable: str, deadline_seconds: float) -> None:
    """Wait until one of the address's endpoints accepts connections."""
    found = list(endpoints(address))
    end = time.monotonic() + deadline_seconds
    while True:
        if any(answers(host, port) for host, port in found):
            return
        if time.monotonic() > end:
            where = ", ".join(f"{host}:{port}" for host, port in found)
            raise NotReadyError(f"{variable} is set, but nothing answers at {where} within {deadline_seconds:g} s.")
        time.sleep(0.2)
