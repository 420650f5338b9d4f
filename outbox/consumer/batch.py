"""A batch as a value, on its way through intake, plan, run, settle and report: each takes it and returns one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outbox.brokers.base import IncomingRecord
from outbox.consumer.portions import Portion
from outbox.declarations.handlers import Delivery
from outbox.storage.rejections import Rejection
from outbox.storage.rows import Locked

Deliveries = Sequence[Delivery[Any]]

Messages = Mapping[tuple[int, str], list[IncomingRecord]]
"""The records of a batch by row and event type: a foreign record with the id of a row must not hide the row's own."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction is about: the records of a portion, and their rows as they were locked."""

    portion: Portion
    live: Sequence[Locked] = ()
    """Rows that still have their effect before them, in the order of their ids."""
    messages: Messages = field(default_factory=dict)
    """The records of ``live``, and of those set aside."""
    rejected: Sequence[Rejection] = ()
    locked: Sequence[IncomingRecord] = ()
    """Records whose rows somebody else has locked, or that follow one of those in its key."""
    duplicates: int = 0
    """So many records are of rows that are done, or came twice."""
    aside: Sequence[Portion] = ()
    """What was interrupted before, and what follows it in its key: to be done behind all others."""

    @property
    def row(self) -> Locked | None:
        """Return the row of a portion of one event; None where it was not locked or is done."""
        return self.live[0] if len(self.live) == 1 else None

    def row_of(self, deliveries: Deliveries) -> Locked:
        """Return the row of the first of ``deliveries``."""
        return next(row for row in self.live if row.id == deliveries[0].outbox_id)

    def records_of(self, rows: Collection[int]) -> list[IncomingRecord]:
        """Return the first record of each of these rows, in the order of their ids."""
        first = {row_id: records[0] for (row_id, _type), records in self.messages.items() if row_id in rows}
        return [first[row_id] for row_id in sorted(first)]

    def behind(self, deliveries: Deliveries) -> set[int]:
        """Return the rows that come after one of ``deliveries`` in the order of their keys."""
        oldest: dict[str, int] = {}
        for each in deliveries:
            oldest[each.message_key] = min(each.outbox_id, oldest.get(each.message_key, each.outbox_id))
        return {row.id for row in self.live if row.id > oldest.get(row.message_key, row.id)}


@dataclass(slots=True)
class Outcome:
    """What one transaction did; told to the world after it committed."""

    consumed: Counter[str] = field(default_factory=Counter)
    waited: int = 0
    redelivered: int = 0
    duplicates: int = 0
    buried: list[tuple[Locked, str]] = field(default_factory=list)
    rejected: Sequence[Rejection] = ()
    blocked_keys: set[str] = field(default_factory=set)
    """Keys of which events were put off behind an unfinished one."""
    finished: dict[str, list[int]] = field(default_factory=dict)
    """By key; of events that died, those that let their key go on."""
    released: int = 0
    """Events that are due now that what they waited for is finished."""
    left: list[Portion] = field(default_factory=list)
    """Records that nothing was done about, in the portions in which something is to be done next."""
    locked: Sequence[IncomingRecord] = ()
    """Records whose rows somebody else has locked."""
    announced: Locked | None = None
    """The row of which it was written down that it is at work, as it was before that."""
