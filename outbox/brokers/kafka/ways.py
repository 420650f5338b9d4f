"""Two ways to write and to read records: ours, which is fast and bounded and knows the client's inside, and the public.

Ours is the normal one. Before it is first used in a process, both are tried on the same records (a few milliseconds);
where they do not agree, or ours finds the client made otherwise, the public way is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, Protocol

from outbox.brokers.kafka.poll import PollRoom
from outbox.brokers.kafka.private import Part, do_without, look_up
from outbox.wire.envelope import Headers


class Writer(Protocol):
    """Gives records to one ``KafkaProducer``."""

    def batch(self) -> AbstractContextManager[None]:
        """Go around records that are written together."""
        ...

    def write(self, topic: str, *, key: bytes, value: bytes, headers: Headers, timestamp_ms: int | None) -> Any:
        """Do what ``KafkaProducer.send`` does; return and raise what it does."""
        ...


class PublicWriter:
    """The public way."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield

    def write(self, topic: str, *, key: bytes, value: bytes, headers: Headers, timestamp_ms: int | None) -> Any:
        return self._client.send(topic, value=value, key=key, headers=list(headers), timestamp_ms=timestamp_ms)


def writer(client: Any) -> Writer:
    """Return what writes to ``client``, a ``KafkaProducer``."""
    if fault := writing_fault():
        do_without(Part.WRITING, fault)
        return PublicWriter(client)
    from outbox.brokers.kafka.encoding import RecordWriter  # noqa: PLC0415 - the client may not have what it imports

    try:
        return RecordWriter(client)
    except AttributeError as error:
        do_without(Part.WRITING, error)
        return PublicWriter(client)


def read_whatever_lies_there(consumer: Any) -> PollRoom:
    """Have ``consumer``, a ``KafkaConsumer``, read as ``kafka_records`` does; return the room of its polls.

    Where the client reads alone, it gives as many bytes as it likes.
    """
    room = PollRoom(0)
    if fault := reading_fault():
        do_without(Part.READING, fault)
        return room
    from outbox.brokers.kafka.records import FetchedRecords  # noqa: PLC0415 - as above

    if look_up(Part.READING, consumer, "_fetcher.PartitionRecords") is not None:
        # An attribute of this one, not of the class.
        consumer._fetcher.PartitionRecords = partial(FetchedRecords, room=room)  # noqa: SLF001
    return room


@cache
def writing_fault() -> str:
    """Return why records cannot be written our way; empty when they can."""
    try:
        from outbox.brokers.kafka import encoding as kafka_encoding  # noqa: PLC0415 - as above

        return kafka_encoding.difference()
    except Exception as error:  # noqa: BLE001 - a client that is made otherwise may raise anything
        return f"{type(error).__name__}: {error}"


@cache
def reading_fault() -> str:
    """Return why records cannot be read our way; empty when they can."""
    try:
        from outbox.brokers.kafka import records as kafka_records  # noqa: PLC0415 - as above

        return kafka_records.difference()
    except Exception as error:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {error}"


def faults() -> Mapping[Part, str]:
    """Try both ways where that was not done yet; return what is done the public way, and why."""
    found = {Part.WRITING: writing_fault(), Part.READING: reading_fault()}
    return {part: fault for part, fault in found.items() if fault}
