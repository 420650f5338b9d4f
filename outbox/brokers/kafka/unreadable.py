"""Batches that cannot be read, or only in part: one record stands for the rest, so that its partition goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord

from outbox.brokers.kafka import codecs
from outbox.log_text import get_logger

logger = get_logger(__name__)

UNREADABLE: Final = "outbox-unreadable-batch"

_FETCHES: Final = 3
"""After so many, a batch with a wrong checksum is one that lies there."""

_damaged: Final[Counter[tuple[int, int, int]]] = Counter()
"""How often a batch came with a wrong checksum."""


class CheckedBatch:
    """A batch that a consumer has fetched."""

    __slots__ = ()

    def validate_crc(self: Any) -> bool:
        """Say whether the batch is to be read: it is whole, or it lies there as it is."""
        if _is_whole(self):
            return True
        identity = _identity(self)
        _damaged[identity] += 1
        return _damaged[identity] >= _FETCHES


def _is_whole(batch: Any) -> bool:
    return bool(super(CheckedBatch, batch).validate_crc())  # that of the client's class


def _identity(batch: Any) -> tuple[int, int, int]:
    return (batch.base_offset, batch.crc, batch.size_in_bytes)


def as_far_as_readable(batch: Any, fetched: Any, records: Callable[[], Iterator[Any]], *, done: int) -> Iterator[Any]:
    """Give ``records`` as far as they can be read, and a record that stands for those behind the offset ``done``.

    :raises MissingLibraryError: its codec has no library here.
    """
    last = batch.last_offset
    if _damaged and _damaged[_identity(batch)] >= _FETCHES:
        yield _stand_in(batch, fetched, done, "its checksum is wrong")
        return
    reason = ""
    try:
        for record in records():
            if not done < record.offset <= last:  # committing such an offset would lose what is between
                raise CorruptRecordError(f"offset {record.offset}, where {done + 1} to {last} are due")
            yield record
            done = record.offset
    except codecs.MissingLibraryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library raises at bytes that are not as they should be
        # The stand-in is not given from here: the error would hold what was decompressed for as long.
        reason = f"{type(error).__name__}: {error}"
    if reason and done < last:
        yield _stand_in(batch, fetched, done, reason)
    elif reason:
        logger.warning("Kafka: a batch whose last offset is %s has more in it than its records: %s", last, reason)


class StandInHeaders(list[tuple[str, bytes]]):
    """The headers of a record that stands for others, and why it does; a record of a topic has none of this class."""

    def __init__(self, fault: str) -> None:
        super().__init__([(UNREADABLE, fault.encode())])
        self.fault = fault


def _stand_in(batch: Any, fetched: Any, done: int, reason: str) -> Any:
    last = batch.last_offset
    # An old batch does not say where it begins.
    text = f"offsets {f'up to {last}' if done < 0 < last else f'{done + 1} to {last}'} cannot be read: {reason}"
    logger.warning("Kafka: %s", text)
    return DefaultRecord(
        len(fetched),
        batch.last_offset,  # the next one to be fetched is behind the batch
        batch.max_timestamp,
        batch.timestamp_type,
        None,
        bytes(fetched),
        StandInHeaders(text),
    )
