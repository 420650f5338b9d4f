"""Just enough of Kafka's protocol to ask a broker whether it serves: one Metadata request and its answer."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_METADATA, _VERSION, _CORRELATION = 3, 1, 7
_T = TypeVar("_T")


class WireError(Exception):
    """The answer was no answer to our question."""


@dataclass(frozen=True)
class Partition:
    """A partition as the broker sees it."""

    topic: str
    number: int
    error: int
    leader: int


@dataclass(frozen=True)
class Metadata:
    """The brokers that take part, by id with their addresses, and the partitions."""

    brokers: dict[int, tuple[str, int]]
    controller: int
    partitions: tuple[Partition, ...]

    def serves(self, *, broker: int, port: int) -> bool:
        """Say whether the broker has joined under this port and every partition has a leader.

        A broker opens its port before it has joined, and joins before its partitions have leaders; a client that
        comes in between gets errors.
        """
        joined = self.brokers.get(broker, ("", 0))[1] == port
        return joined and all(part.error == 0 and part.leader >= 0 for part in self.partitions)


def ask(host: str, port: int, *, timeout_seconds: float = 2.0) -> Metadata:
    """Ask a broker for the metadata of all topics; OSError or WireError when it gives none."""
    name = b"smartflow-services"
    header = struct.pack(f">hhih{len(name)}s", _METADATA, _VERSION, _CORRELATION, len(name), name)
    message = header + struct.pack(">i", -1)
    with socket.create_connection((host, port), timeout=timeout_seconds) as connection:
        connection.settimeout(timeout_seconds)
        connection.sendall(struct.pack(">i", len(message)) + message)
        (size,) = struct.unpack(">i", _receive(connection, 4))
        if not 0 < size < 1 << 26:
            raise WireError(f"an answer of {size} bytes")
        return decode(_receive(connection, size))


def decode(answer: bytes) -> Metadata:
    """Read a Metadata answer, version 1."""
    reader = _Reader(answer)
    if reader.int32() != _CORRELATION:
        raise WireError("an answer to another question")
    brokers = dict(reader.array(lambda: _broker(reader)))
    controller = reader.int32()
    topics = reader.array(lambda: _topic(reader))
    return Metadata(brokers, controller, tuple(part for topic in topics for part in topic))


def _broker(reader: _Reader) -> tuple[int, tuple[str, int]]:
    number, host, port = reader.int32(), reader.string(), reader.int32()
    reader.string()  # the rack
    return number, (host, port)


def _topic(reader: _Reader) -> list[Partition]:
    error, name = reader.int16(), reader.string()
    reader.take(1)  # whether the topic is internal
    found = reader.array(lambda: _partition(reader, name))
    return found or ([Partition(name, -1, error, -1)] if error else [])


def _partition(reader: _Reader, topic: str) -> Partition:
    error, number, leader = reader.int16(), reader.int32(), reader.int32()
    reader.array(reader.int32)  # the replicas
    reader.array(reader.int32)  # those in sync
    return Partition(topic, number, error, leader)


class _Reader:
    """Takes Kafka's primitive types off a byte string, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Give the next bytes."""
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise WireError("the answer is too short")
        self._at += size
        return taken

    def int16(self) -> int:
        """Give a signed 16-bit number."""
        return int.from_bytes(self.take(2), "big", signed=True)

    def int32(self) -> int:
        """Give a signed 32-bit number."""
        return int.from_bytes(self.take(4), "big", signed=True)

    def string(self) -> str:
        """Give a string; an absent one is empty."""
        size = self.int16()
        return self.take(size).decode(errors="replace") if size > 0 else ""

    def array(self, element: Callable[[], _T]) -> list[_T]:
        """Give as many elements as the array says it has."""
        return [element() for _ in range(max(self.int32(), 0))]


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise WireError("the connection ended within the answer")
        received += piece
    return bytes(received)
