"""Reads what other clients can write and kafka-python 3.0 gives up at, at every poll.

Without this, one such record would hold up its partition for ever.

* A header name that is not UTF-8: Kafka takes any bytes. It comes out with its odd bytes escaped (``na\\xffme``).
* Headers that cannot be taken apart. What can be read of them comes out, and the rest as one by itself.
* A batch that cannot be taken apart, say because something follows its compressed bytes. One record stands for it, or
  for what is left of it: its value is the batch as it was fetched, its header ``UNREADABLE`` says which offsets and
  why. No outbox message looks like it, so it is kept as a rejected record; those of its events that are ours are
  delivered again.
* A batch whose checksum is wrong, likewise, once it was fetched so three times: it may have been damaged on its way.
* A batch that decompresses to more than a batch may: see ``_kafka_codecs``. Nothing of it is read.

A batch whose codec has no library here is not among them: it can be read as soon as somebody installs it.

What is read takes bounded memory: one batch is decompressed at a time, its records are made as they are asked for, and
a poll gives no more bytes than it has room for (``PollRoom``). Headers are read when somebody asks for them, so that
what nobody looks at costs nothing.

Only the consumers that are told so read like this: ``FetchedRecords`` stands in the place of the class that the fetcher
of such a consumer makes of each answer, ``Fetcher.PartitionRecords``. Not public are that class, its place, and its
``record_iterator``, ``bytes_read`` and ``take``; of ``DefaultRecordBatch`` ``_buffer``, ``_pos``, ``_decompressed`` and
``_read_msg``; of ``LegacyRecordBatch`` ``_buffer`` and ``_crc``. Whether all that is as it was, ``difference`` finds
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import Any, Final

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint, encode_varint

from outbox.brokers.kafka import codecs
from outbox.brokers.kafka import old_records as old
from outbox.brokers.kafka.poll import PollFullError, PollRoom
from outbox.brokers.kafka.unreadable import CheckedBatch, as_far_as_readable
from outbox.wire.envelope import Headers

UNREADABLE_HEADERS: Final = "outbox-unreadable-headers"
"""Its value is what is left of a record's headers from the first on that cannot be read."""


class PackedHeaders:
    """The headers of one record as they came, read when somebody asks: of most records, the first one alone.

    To read all of a record of ours takes twice as long as to read all the rest of it.
    """

    __slots__ = ("_count", "_packed")

    def __init__(self, packed: bytes, count: int) -> None:
        self._packed, self._count = packed, count

    def __bool__(self) -> bool:
        """Say no, whatever they are: of headers that are true the client reads the lengths, which nobody uses."""
        return False

    @property
    def size_bytes(self) -> int:
        return len(self._packed)

    def get(self, name: str) -> bytes | None:
        """Return the first value of a header, None where there is none; what is behind it is not read."""
        packed, front = self._packed, _packed_name(name)
        if packed.startswith(front) and self._count:
            at = len(front)
            twice = packed[at] if at < len(packed) else 1
            end = at + 1 + twice // 2
            if not twice & 0x81 and end <= len(packed):  # zigzag: even, below 128 is one byte
                return packed[at + 1 : end]  # in a tenth of the time of what follows
        wanted, at = name.encode(), 0
        try:
            for _ in range(self._count):
                found, at = _read_bytes(self._packed, at)
                value, at = _read_bytes(self._packed, at)
                if found == wanted:
                    return value or b""
        except (ValueError, IndexError):
            pass  # it cannot be read, and neither can what is behind it
        return None

    def __call__(self) -> Headers:
        """Return them; what cannot be read is one more by the name of ``UNREADABLE_HEADERS``."""
        found: list[tuple[str, bytes]] = []
        at = 0
        try:
            for _ in range(self._count):
                name, behind = _read_bytes(self._packed, at)
                value, behind = _read_bytes(self._packed, behind)
                found.append(((name or b"").decode("utf-8", "backslashreplace"), value or b""))
                at = behind
        except (ValueError, IndexError):
            pass  # what is left says so
        if at < len(self._packed):
            found.append((UNREADABLE_HEADERS, self._packed[at:]))
        return tuple(found)


@cache
def _packed_name(name: str) -> bytes:
    """Return the name of a header as it is in a record."""
    packed = bytearray()
    encode_varint(len(name.encode()), packed.append)
    return bytes(packed) + name.encode()


def _read_bytes(buffer: Any, at: int) -> tuple[bytes | None, int]:
    """Return what has its length before it, and the place behind it.

    :raises ValueError: it is longer than the buffer, or its length is no number.
    :raises IndexError: the buffer ends before it.
    """
    length, at = decode_varint(buffer, at)
    if length < 0:
        return None, at
    if at + length > len(buffer):
        raise ValueError(f"{length} bytes at {at}, where {len(buffer) - at} are left")
    return bytes(buffer[at : at + length]), at + length


class _OldBatch(CheckedBatch, LegacyRecordBatch):  # type: ignore[misc] # the client has no types
    """One of an old format: a message, or several that are compressed together."""

    __slots__ = ()

    crc = property(attrgetter("_crc"))
    last_offset = property(attrgetter("base_offset"))
    max_timestamp = LegacyRecordBatch.NO_TIMESTAMP

    def __iter__(self: Any) -> Iterator[Any]:
        """Give what can be read of the batch, and a record that stands for the rest."""
        return as_far_as_readable(self, self._buffer, lambda: old.records(self, self._buffer), done=-1)


class _ControlBatch(CheckedBatch, DefaultRecordBatch):  # type: ignore[misc] # as above
    """One with a marker of a transaction in it, or with records."""

    __slots__ = ()


class _FetchedBatch(_ControlBatch):
    """One with records."""

    __slots__ = ()

    def __iter__(self: Any) -> Iterator[Any]:
        """Give what can be read of the batch, and a record that stands for the rest."""
        return as_far_as_readable(self, self._buffer, self.records, done=self.base_offset - 1)

    def records(self: Any) -> Iterator[Any]:
        """Give the records; the first one takes that they are decompressed, within the limit."""
        if self.compression_type and not self._decompressed:
            self._buffer = codecs.decompress(self.compression_type, memoryview(self._buffer)[self._pos :])
            self._pos = 0
            self._decompressed = True
        DefaultRecordBatch.__iter__(self)
        while (record := next(self, None)) is not None:
            yield record

    def _read_msg(self: Any) -> Any:
        """Read the next record but for its headers (https://kafka.apache.org/documentation/#record)."""
        buffer = self._buffer
        length, at = decode_varint(buffer, self._pos)
        end = at + length
        if not at < end <= len(buffer):
            raise CorruptRecordError(f"a record of {length} bytes at {at}, where {len(buffer) - at} are left")
        after_ms, at = decode_varint(buffer, at + 1)  # behind its attributes, which mean nothing
        offset, at = decode_varint(buffer, at)
        key, at = _read_bytes(buffer, at)
        value, at = _read_bytes(buffer, at)
        count, at = decode_varint(buffer, at)
        if at > end or count < 0:
            raise CorruptRecordError(f"a record of {length} bytes whose parts take {at - end} more, {count} headers")
        self._pos = end
        return DefaultRecord(
            length,
            self.base_offset + offset,
            self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else self.first_timestamp + after_ms,
            self.timestamp_type,
            key,
            value,
            PackedHeaders(bytes(buffer[at:end]), count),
        )


class FetchedBatches:
    """The batches of one answer; each becomes one of ours when it is asked for."""

    __slots__ = ("_batches",)

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def next_batch(self) -> Any:
        batch = self._batches.next_batch()
        if type(batch) is DefaultRecordBatch:
            batch.__class__ = _ControlBatch if batch.is_control_batch else _FetchedBatch
        elif type(batch) is LegacyRecordBatch:
            batch.__class__ = _OldBatch
        return batch


class FetchedRecords(Fetcher.PartitionRecords):  # type: ignore[misc] # the client has no types
    """The records of one partition in one answer, read as this module says."""

    def __init__(
        self, fetch_offset: int, partition: Any, batches: Any, *args: Any, room: PollRoom, **options: Any
    ) -> None:
        super().__init__(fetch_offset, partition, FetchedBatches(batches), *args, **options)
        self._room = room
        self.record_iterator = _WithinRoom(self, room)

    def take(self, n: int | None = None) -> list[Any]:
        """Return up to ``n`` records, fewer where the poll has no room for more.

        :raises PollFullError: it has no room for any; the client then ends its poll, and raises this at the next one.
        """
        if self._room.left <= 0:
            raise PollFullError
        taken: list[Any] = super().take(n)
        return taken


class _WithinRoom:
    """The records of one partition; they end where the poll has no room, and go on when the next one has."""

    __slots__ = ("_part", "_records", "_room")

    def __init__(self, part: FetchedRecords, room: PollRoom) -> None:
        self._part, self._room = part, room
        self._records: Iterator[Any] = part.record_iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._room.left <= 0:
            raise StopIteration
        before = self._part.bytes_read
        record = next(self._records)
        self._room.left -= self._part.bytes_read - before
        return record


# --- the self-test ---------------------------------------------------------------------------------------------------


def difference() -> str:
    """Read batches as we do and as the client does; return how the two differ, an empty text when they do not.

    :raises Exception: whatever comes of a client that is made otherwise.
    """
    place = TopicPartition("self-test", 0)
    for compression in (0, *(number for number, name in codecs.NAMES.items() if name not in codecs.missing())):
        builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 1 << 16)
        builder.append(0, 1_700_000_000_000, b"key", b"v" * 300, [("name", b"header"), ("", None)])
        builder.append(1, 1_699_999_999_000, None, b"", [])
        builder.append(2, 1_700_000_000_070, b"k" * 70, None, [(f"name-{number}", b"x") for number in range(70)])
        raw = bytes(builder.build())
        for first in (0, 1):
            room = PollRoom(1)
            ours = FetchedRecords(first, place, MemoryRecords(raw), room=room)
            theirs = Fetcher.PartitionRecords(first, place, MemoryRecords(raw))
            found = ours.take()
            if len(found) != 1 or room.left > 0:
                return f"{len(found)} records are read where there is room for one"
            room.left = 1 << 20
            if [_comparable(each) for each in [*found, *ours.take()]] != [_comparable(each) for each in theirs.take()]:
                return "records are read otherwise than by the client"
            if ours.next_fetch_offset != theirs.next_fetch_offset:
                return f"reading goes on at {ours.next_fetch_offset}, that of the client at {theirs.next_fetch_offset}"
    return ""


def _comparable(record: Any) -> tuple[Any, ...]:
    headers = record.headers() if isinstance(record.headers, PackedHeaders) else record.headers
    return (
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.timestamp_type,
        record.key,
        record.value,
        [(name, value or b"") for name, value in headers],
    )
