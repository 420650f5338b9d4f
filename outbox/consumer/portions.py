"""The parts in which a batch is done, each in a transaction of its own. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from outbox.brokers.base import IncomingRecord
from outbox.storage.chunks import chunks
from outbox.storage.rows import Locked


class Way(enum.Enum):
    """How a part of a batch is done."""

    TOGETHER = "together"
    """In one transaction; the first call that fails ends it."""
    IN_SAVEPOINTS = "in savepoints"
    """In one transaction, a savepoint a call; what fails is left out."""
    ALONE = "alone"
    """One event, which is charged with what its handler does."""
    SUSPECT = "suspect"
    """One event that may have ended the worker before: announced, or set aside where it was interrupted before."""
    ANNOUNCED = "announced"
    """One event that may take its process or connection down: that it is at work is written down before."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Records that one transaction is to bring to an end."""

    records: list[IncomingRecord]
    way: Way = Way.TOGETHER
    is_last: bool = False
    """It is done behind all others of the batch: it has ended a worker before, and the others should be done then."""
    announced: Locked | None = None
    """The row of its one event, whose interruption is counted already: it is about to be tried."""


def halves(records: list[IncomingRecord], way: Way = Way.TOGETHER) -> list[Portion]:
    """Return ``records`` in two portions: what follows a poison event in its key may hold as many more."""
    middle = len(records) // 2
    return [*whole(records[:middle], way), *whole(records[middle:], way)]


def fitting(records: list[IncomingRecord], lengths: Mapping[tuple[int, int], int], *, max_bytes: int) -> list[Portion]:
    """Return ``records`` in portions of at most ``max_bytes``, or one record; by lengths at partitions and offsets."""
    parts = chunks(
        records,
        lambda record: lengths.get((record.partition, record.offset), 0),
        max_items=len(records),
        max_bytes=max_bytes,
    )
    return [Portion(part) for part in parts]


def whole(records: list[IncomingRecord], way: Way = Way.TOGETHER, *, is_last: bool = False) -> list[Portion]:
    """Return ``records`` in one portion, or none where there are none."""
    return [Portion(records, way, is_last)] if records else []


def each_alone(records: Iterable[IncomingRecord]) -> list[Portion]:
    """Return a portion for each of ``records``."""
    return [Portion([record], Way.ALONE) for record in records]
