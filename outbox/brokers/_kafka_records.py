"""Reads records whose header names are not UTF-8: Kafka takes any bytes, kafka-python 3.0 gives up at every poll.

Without this one such record, which any other client can write, would hold up its partition for ever. The name comes
out with its odd bytes escaped (``na\\xffme``).
"""

# ruff: noqa: SLF001 - there is no public way into the client's reading of a batch

from __future__ import annotations

from typing import Any

from kafka.record.default_records import DefaultRecordBatch

_read_strictly = DefaultRecordBatch._read_msg


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


def read_any_header_name() -> None:
    """Have every consumer of this process read such records."""
    DefaultRecordBatch._read_msg = _read_leniently
