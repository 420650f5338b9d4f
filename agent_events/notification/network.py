"""The network below the HTTP client: connects to addresses that were checked, and to a deadline for everything.

A name is resolved once, here; what it resolves to is checked, and the connection goes to that very address, so a name
server that answers differently a moment later (DNS rebinding) gains nothing. The HTTP client and TLS keep using the
name: the Host header, SNI and the certificate check are as usual.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpcore

from agent_events.notification.webhooks import is_public

AddressInfo = tuple[int, int, int, str, Any]
Lookup = Callable[[str, int], Sequence[AddressInfo]]


class AddressRefusedError(Exception):
    """A host leads to an address that is private, loopback, link-local or reserved."""


class LookupFailedError(Exception):
    """A host has no address, or nobody could say it in time."""


class Deadline:
    """The moment at which a request has to be over, however it spends its time."""

    def __init__(self, timeout: timedelta, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends_at = clock() + timeout.total_seconds()

    def remaining_s(self) -> float:
        """Return the seconds left.

        :raises TimeoutError: there are none.
        """
        left_s = self._ends_at - self._clock()
        if left_s <= 0:
            raise TimeoutError("the time for the request is over")
        return left_s


def system_lookup(host: str, port: int) -> Sequence[AddressInfo]:
    """Ask the system's resolver."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@dataclass(frozen=True, slots=True)
class CheckedNetwork(httpcore.NetworkBackend):
    """Connects one request. ``named``: an operator named the host, so any address will do."""

    deadline: Deadline
    named: bool
    lookup: Lookup = system_lookup

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline rules
        local_address: str | None = None,  # noqa: ARG002 - not used here
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - not used here
    ) -> httpcore.NetworkStream:
        """Connect to the first address of ``host`` that answers.

        :raises AddressRefusedError: one of its addresses is not of the public internet.
        :raises LookupFailedError: it has none.
        """
        found = self._resolve(host, port)
        if not self.named and not all(is_public(info[4][0]) for info in found):
            raise AddressRefusedError(f"the host {host} leads to an address that is not of the public internet")
        with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            return DeadlineStream(self._connect(found), self.deadline)

    def _resolve(self, host: str, port: int) -> Sequence[AddressInfo]:
        """Look ``host`` up on a thread that is left behind when it takes too long: the system gives no time-out."""
        answers: queue.SimpleQueue[Sequence[AddressInfo] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.lookup(host, port))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        threading.Thread(target=ask, name="notification-lookup", daemon=True).start()
        try:
            answer = answers.get(timeout=self.deadline.remaining_s())
        except (queue.Empty, TimeoutError):
            raise httpcore.ConnectTimeout(f"no address of {host} in time") from None
        if isinstance(answer, Exception) or not answer:
            raise LookupFailedError(f"no address of {host} was found: {answer}")
        return answer

    def _connect(self, addresses: Sequence[AddressInfo]) -> socket.socket:
        """Try the addresses in order, each for an equal share of the time that is left."""
        error: OSError = OSError("no address")
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self.deadline.remaining_s() / (len(addresses) - position))
                made.connect(address)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failure:
                made.close()
                error = failure
            else:
                return made
        raise error


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose every read and write ends at the deadline: answers that drip in do not prolong it."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline rules
        with _errors_as(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(self._deadline.remaining_s())
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline rules
        with _errors_as(httpcore.WriteTimeout, httpcore.WriteError):
            view = memoryview(buffer)
            while view:
                self._socket.settimeout(self._deadline.remaining_s())
                view = view[self._socket.send(view) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline rules
    ) -> httpcore.NetworkStream:
        try:
            with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._socket.settimeout(self._deadline.remaining_s())
                secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return DeadlineStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002 - nothing is told
        """Tell the HTTP client that HTTP/2 was not agreed on; it asks for nothing else here."""
        return None


@contextmanager
def _errors_as(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    """Turn the errors of sockets and TLS into those of the HTTP client."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise other(str(error)) from error
