"""Reads message sets of Kafka before 0.11, formats 0 and 1, record by record: old topics may still hold some.

The client reads the heads of all messages first, 300 bytes of memory for each 26 bytes, and follows lengths that lead
back: such a set would take all memory. Only an envelope is compressed: its value is the set.

https://kafka.apache.org/documentation/#messageset
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord
from kafka.record.legacy_records import LegacyRecordBatch

from outbox.brokers.kafka import codecs

_HEAD: Final = struct.Struct(">qiIbb")
"""Offset, size of what follows, checksum, format, attributes."""

_OFFSET_BYTES: Final = 8

_SIZED: Final = 12
"""Bytes of offset and size."""

_CHECKED: Final = 16
"""Where that begins of which the checksum is."""

_TIMESTAMP: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">i")
_CODEC_MASK: Final = 0x07
_LZ4: Final = 3


class _Message(NamedTuple):
    end: int
    offset: int
    codec: int
    timestamp: int | None
    key: bytes | None
    value: memoryview | None


def records(batch: LegacyRecordBatch, raw: memoryview) -> Iterator[Any]:
    """Give the records of ``batch``, whose bytes are ``raw``, as they are read.

    :raises CorruptRecordError: a length, a checksum or a codec is not as it should be.
    :raises Exception: as ``codecs.decompress``.
    """
    envelope = _read(raw, 0)
    if not envelope.codec:
        yield _record(batch, envelope, envelope.offset)
        return
    if envelope.codec == _LZ4 and batch.magic == 0:
        raise CorruptRecordError("lz4 in message format 0 is not read: its frames have a wrong checksum")
    if envelope.value is None:
        raise CorruptRecordError("a compressed message set has no value")
    packed = memoryview(codecs.decompress(envelope.codec, envelope.value))
    # In format 1 offsets count from 0 within a set, and the envelope has that of the last.
    base = envelope.offset - _last_offset(packed) if batch.magic else 0
    at, offset = 0, -1
    while at < len(packed):
        message = _read(packed, at)
        if message.codec:
            raise CorruptRecordError(f"message {message.offset} of a compressed set is compressed as well")
        offset = max(base, 0) + message.offset
        yield _record(batch, message, offset)
        at = message.end
    if offset != envelope.offset:  # it would be fetched again for ever
        raise CorruptRecordError(f"a compressed set ends at offset {offset}, where {envelope.offset} is due")


def _record(batch: LegacyRecordBatch, message: _Message, offset: int) -> Any:
    value = None if message.value is None else bytes(message.value)
    size = len(message.key or b"") + len(value or b"")
    return DefaultRecord(size, offset, message.timestamp, batch.timestamp_type, message.key, value, [])


def _read(buffer: memoryview, at: int) -> _Message:
    end = _end(buffer, at)
    offset, _, checksum, magic, attributes = _HEAD.unpack_from(buffer, at)
    if zlib.crc32(buffer[at + _CHECKED : end]) != checksum:
        raise CorruptRecordError(f"the checksum of message {offset} is wrong")
    behind = at + _HEAD.size
    timestamp: int | None = None
    if magic:
        (timestamp,) = _TIMESTAMP.unpack_from(buffer, behind)
        behind += _TIMESTAMP.size
    key, behind = _bytes(buffer, behind, end)
    value, behind = _bytes(buffer, behind, end)
    return _Message(end, offset, attributes & _CODEC_MASK, timestamp, None if key is None else bytes(key), value)


def _last_offset(buffer: memoryview) -> int:
    last = end = 0
    while end < len(buffer):
        last, end = end, _end(buffer, end)
    return int.from_bytes(buffer[last : last + _OFFSET_BYTES], "big")


def _end(buffer: memoryview, at: int) -> int:
    """Return the place behind the message at ``at``."""
    if len(buffer) - at >= _HEAD.size:
        size: int = _LENGTH.unpack_from(buffer, at + _SIZED - _LENGTH.size)[0]
        if _HEAD.size - _SIZED <= size <= len(buffer) - at - _SIZED:
            return at + _SIZED + size
    raise CorruptRecordError(f"a message at {at}, where {len(buffer) - at} bytes are left, says a size that cannot be")


def _bytes(buffer: memoryview, at: int, end: int) -> tuple[memoryview | None, int]:
    """Return what has its length before it, none for a length of -1, and the place behind it."""
    (length,) = _LENGTH.unpack_from(buffer, at)
    at += _LENGTH.size
    if length == -1:
        return None, at
    if not 0 <= length <= end - at:
        raise CorruptRecordError(f"{length} bytes at {at}, where {end - at} are left")
    return buffer[at : at + length], at + length
