"""Reads what other clients can write and kafka-python 3.0 gives up at, at every poll.

Without this, one such record would hold up its partition for ever.

* A header name that is not UTF-8: Kafka takes any bytes. It comes out with its odd bytes escaped (``na\\xffme``).
* A batch that cannot be taken apart, say because something follows its compressed bytes. One record stands for it, or
  for what is left of it: its value is the batch as it was fetched, its header ``UNREADABLE`` says which offsets and
  why. No outbox message looks like it, so it is kept as a rejected record; those of its events that are ours are
  delivered again.
* A batch whose checksum is wrong, likewise, once it was fetched so three times: it may have been damaged on its way.

A batch whose codec has no library here is not among them: it can be read as soon as somebody installs it.
"""

# ruff: noqa: SLF001 - there is no public way into the client's reading of a batch

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch

from outbox.brokers import _kafka_codecs as codecs

logger = logging.getLogger(__name__)

UNREADABLE: Final = "outbox-unreadable-batch"

_FETCHES: Final = 3
"""After so many, a batch with a wrong checksum is one that lies there."""

_read_strictly: Final = DefaultRecordBatch._read_msg
_open_strictly: Final = DefaultRecordBatch.__iter__
_is_whole: Final = DefaultRecordBatch.validate_crc

_damaged: Final[Counter[tuple[int, int, int]]] = Counter()
"""How often a batch came with a wrong checksum."""


class _Name(bytearray):
    """Part of a batch that decodes whatever it holds."""

    def decode(self, *_encoding: Any) -> str:
        return bytes(self).decode("utf-8", "backslashreplace")


class _LenientBuffer(bytearray):
    """A batch whose parts decode whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Name(found) if isinstance(at, slice) else found


def _read_leniently(batch: Any) -> Any:
    try:
        return _read_strictly(batch)
    except UnicodeDecodeError:
        # The batch's position moves at the end of a record only, so this reads the same one again.
        batch._buffer = _LenientBuffer(batch._buffer)
        return _read_strictly(batch)


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
    DefaultRecordBatch._read_msg = _read_leniently
    DefaultRecordBatch.__iter__ = _records
    DefaultRecordBatch.validate_crc = _is_whole_or_given_up
