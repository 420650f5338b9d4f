"""Reads what other clients can write and kafka-python 3.0 gives up at, at every poll.

Without this, one such record would hold up its partition for ever.

* A header name that is not UTF-8: Kafka takes any bytes. It comes out with its odd bytes escaped (``na\\xffme``).
* Headers that cannot be taken apart. What can be read of them comes out, and the rest as one by itself.
* A batch that cannot be taken apart, say because something follows its compressed bytes. One record stands for it, or
  for what is left of it: its value is the batch as it was fetched, its header ``UNREADABLE`` says which offsets and
  why. No outbox message looks like it, so it is kept as a rejected record; those of its events that are ours are
  delivered again.
* A batch whose checksum is wrong, likewise, once it was fetched so three times: it may have been damaged on its way.

A batch whose codec has no library here is not among them: it can be read as soon as somebody installs it.

Headers are read when somebody asks for them, so that what nobody looks at costs nothing.
"""

# ruff: noqa: SLF001 - there is no public way into the client's reading of a batch

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

from outbox.brokers import _kafka_codecs as codecs
from outbox.envelope import Headers
from outbox.log_text import get_logger

logger = get_logger(__name__)

UNREADABLE: Final = "outbox-unreadable-batch"

UNREADABLE_HEADERS: Final = "outbox-unreadable-headers"
"""Its value is what is left of a record's headers from the first on that cannot be read."""

_FETCHES: Final = 3
"""After so many, a batch with a wrong checksum is one that lies there."""

_open_strictly: Final = DefaultRecordBatch.__iter__
_is_whole: Final = DefaultRecordBatch.validate_crc

_damaged: Final[Counter[tuple[int, int, int]]] = Counter()
"""How often a batch came with a wrong checksum."""


class PackedHeaders:
    """The headers of one record as they came, read when somebody asks: of ten thousand records hardly one is.

    To read the ten of a record of ours takes twice as long as to read all the rest of it.
    """

    __slots__ = ("_count", "_packed")

    def __init__(self, packed: bytes, count: int) -> None:
        self._packed, self._count = packed, count

    def __bool__(self) -> bool:
        """Say no, whatever they are: of headers that are true the client reads the lengths, which nobody uses."""
        return False

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


class _FetchedBatch(DefaultRecordBatch):  # type: ignore[misc] # the client has no types
    """A batch that a consumer has fetched. One that a producer takes apart to send it again is read by the client."""

    __slots__ = ()

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


def _records(batch: Any) -> Iterator[Any]:
    """Give what can be read of ``batch``, and a record that stands for the rest."""
    fetched = batch._buffer
    done, last = batch.base_offset - 1, batch.last_offset
    try:
        if _damaged and _damaged[_identity(batch)] >= _FETCHES:
            yield _stand_in(batch, fetched, done, "its checksum is wrong")
            return
        _open_strictly(batch)
        while (record := next(batch, None)) is not None:
            if not done < record.offset <= last:  # committing such an offset would lose what is between
                raise CorruptRecordError(f"offset {record.offset}, where {done + 1} to {last} are due")
            yield record
            done = record.offset
    except Exception as error:
        name = codecs.NAMES.get(batch.compression_type)
        if isinstance(error, UnsupportedCodecError) and name in codecs.missing():
            how = codecs.how_to_get([name])
            raise UnsupportedCodecError(f"records are compressed by {name}, whose library is missing: {how}") from error
        if done < last:
            yield _stand_in(batch, fetched, done, f"{type(error).__name__}: {error}")
        else:
            logger.warning("Kafka: a batch whose last offset is %s has more in it than its records: %s", done, error)


def _stand_in(batch: Any, fetched: bytes, done: int, reason: str) -> Any:
    text = f"offsets {done + 1} to {batch.last_offset} cannot be read: {reason}"
    logger.warning("Kafka: %s", text)
    return DefaultRecord(
        len(fetched),
        batch.last_offset,  # the next one to be fetched is behind the batch
        batch.max_timestamp,
        batch.timestamp_type,
        None,
        bytes(fetched),
        [(UNREADABLE, text.encode())],
    )


def _take_in(batch: Any) -> bool:
    """Say whether a batch is to be read, as the consumer asks of each that it fetched; nobody else asks."""
    if not batch.is_control_batch:
        batch.__class__ = _FetchedBatch
    return _is_whole_or_given_up(batch)


def _is_whole_or_given_up(batch: Any) -> bool:
    if _is_whole(batch):
        return True
    identity = _identity(batch)
    _damaged[identity] += 1
    return _damaged[identity] >= _FETCHES


def _identity(batch: Any) -> tuple[int, int, int]:
    return (batch.base_offset, batch.crc, batch.size_in_bytes)


def read_whatever_lies_there() -> None:
    """Have every consumer of this process read such records."""
    DefaultRecordBatch.__iter__ = _records
    DefaultRecordBatch.validate_crc = _take_in
