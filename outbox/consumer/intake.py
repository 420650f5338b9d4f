"""The first step: records are decoded, the rows that they name locked, and what is live among those found out.

A record only says which row to look at; the row is the truth. What belongs to no row is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from outbox.brokers.base import IncomingRecord
from outbox.consumer.batch import Batch
from outbox.consumer.portions import Portion, Way, whole
from outbox.exceptions import EnvelopeError
from outbox.lifecycle import UNFINISHED
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import Rejection
from outbox.storage.rows import Identity, Locked
from outbox.wire.envelope import decode_message, stated_event_id

Named = tuple[int, str]
"""The row and the event type that a record names."""

_SHOWN_CHARACTERS: Final = 160
"""Of an event id in a reason, which has room for two: a record may state one of any length."""


class TooMuchAtOnce(Exception):  # noqa: N818 - not an error: the batch is cut
    """Private to the consumer. The payloads of the batch are more than one transaction should hold.

    ``lengths`` are their bytes, by the partition and offset of their records.
    """

    def __init__(self, lengths: Mapping[tuple[int, int], int]) -> None:
        super().__init__()
        self.lengths = lengths


@dataclass(slots=True)
class Decoded:
    """Records by what they name, with the event ids that they state (the row's id stands for none), in their order."""

    messages: dict[Named, list[IncomingRecord]] = field(default_factory=dict)
    event_ids: dict[Named, list[str]] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    """What names no row of the service."""


def decode_records(records: Sequence[IncomingRecord], *, service: str) -> Decoded:
    """Return what ``records`` name."""
    decoded = Decoded()
    messages, event_ids, rejected = decoded.messages, decoded.event_ids, decoded.rejected
    for record in records:
        if record.fault:
            rejected.append(Rejection(record, record.fault))
            continue
        try:
            message = decode_message(record.value)
        except EnvelopeError as error:
            rejected.append(Rejection(record, str(error)))
            continue
        if message.service_name not in {"", service}:
            rejected.append(Rejection(record, f"it belongs to service {message.service_name!r}"))
        else:
            named = (message.outbox_id, message.event_type)
            if named in messages:
                messages[named].append(record)
                event_ids[named].append(message.event_id)
            else:
                messages[named], event_ids[named] = [record], [message.event_id]
    return decoded


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes the records of one service in, inside of the transaction in which their handlers will run.

    ``batch_bytes`` are the bytes of payloads that one transaction may hold.
    """

    repository: ConsumerRows
    batch_bytes: int

    def decode(self, portion: Portion) -> Decoded:
        """Return what the records of ``portion`` name, without the database."""
        return decode_records(portion.records, service=self.repository.route.service)

    def take(self, portion: Portion, decoded: Decoded, *, is_young: Callable[[IncomingRecord], bool]) -> Batch:
        """Lock the rows of ``portion`` and return what is to be done.

        What follows the locked row of an ``is_young`` record in its key is set aside with it.

        :raises TooMuchAtOnce: cut the portion.
        """
        taking = _Taking(self, portion, decoded)
        found = taking.lock(is_young)
        live = self._with_payloads(taking.live(found), taking)
        aside = list[Portion]()
        if portion.way is not Way.ANNOUNCED and portion.announced is None:
            live, aside = _suspects_aside(live, taking)
        return Batch(portion, live, taking.messages, taking.rejected, taking.locked, taking.duplicates, aside)

    def _with_payloads(self, live: list[Locked], taking: _Taking) -> list[Locked]:
        """Fetch the payloads that were longer than their share; that of an event alone is read when its turn comes.

        :raises TooMuchAtOnce: all payloads together are more than one transaction should hold.
        """
        if len(live) < 2:
            return live
        if sum(row.payload_length for row in live) > self.batch_bytes:
            raise TooMuchAtOnce(
                {
                    (record.partition, record.offset): row.payload_length
                    for row in live
                    for record in taking.messages[(row.id, row.event_type)]
                }
            )
        long = self.repository.payloads_of([row.id for row in live if row.payload is None])
        return [replace(row, payload=long[row.id]) if row.id in long else row for row in live]

    def match(
        self,
        row: Locked | Identity | None,
        named: Named,
        records: list[IncomingRecord],
        event_ids: list[str],
    ) -> tuple[list[IncomingRecord], Sequence[Rejection]]:
        """Return those of ``records``, which name the row and type ``named``, that are of ``row``, and the others.

        ``event_ids`` are theirs.

        Those of another event are told by its id where row and record state one: a database that was restored gives
        ids out again, and records of the rows that had them before are on the topic.
        """
        row_id, event_type = named
        table = self.repository.route.table
        if row is None:
            reason = f"no row {row_id} in {table}: pruned or foreign"
            return [], [Rejection(record, reason) for record in records]
        if row.event_type != event_type or event_type in self.repository.foreign_types:
            reason = f"row {row_id} of {table} is a {row.event_type!r} and not this service's {event_type!r}"
            return [], [Rejection(record, reason) for record in records]
        if event_ids.count(row.event_id) == len(records) or not stated_event_id(row.event_id, outbox_id=row_id):
            return records, ()
        reason = f"event_id of row {row_id} of {table} is {_shown(row.event_id)}, that of the record is"
        own: list[IncomingRecord] = []
        others: list[Rejection] = []
        for record, event_id in zip(records, event_ids, strict=True):
            if event_id == row.event_id or not stated_event_id(event_id, outbox_id=row_id):
                own.append(record)
            else:
                others.append(Rejection(record, f"{reason} {_shown(event_id)}: it is of an earlier row with that id"))
        return own, others


class _Taking:
    """One intake as it goes on: ``messages`` loses what is set aside, and keeps what is live in the end."""

    def __init__(self, intake: Intake, portion: Portion, decoded: Decoded) -> None:
        self._intake = intake
        self._portion = portion
        self._event_ids = decoded.event_ids
        self.messages = dict(decoded.messages)
        self.rejected = list(decoded.rejected)
        self.locked: list[IncomingRecord] = []
        self.duplicates = 0
        self._held: dict[int, Identity] = {}
        """What the rows are that somebody else has locked."""

    def lock(self, is_young: Callable[[IncomingRecord], bool]) -> dict[int, Locked]:
        """Return the rows that could be locked, by id."""
        ids = {row_id for row_id, _ in self.messages}
        # What is sure to fit comes along; of the others the lengths come first.
        share = self._intake.batch_bytes // max(len(ids), 1)
        found = {row.id: row for row in self._intake.repository.lock(list(ids), max_length=share)}
        if len(found) < len(ids):
            self._set_locked_aside(ids - found.keys(), found, is_young)
        return found

    def live(self, found: Mapping[int, Locked]) -> list[Locked]:
        """Return the rows that still have their effect before them; reject records that no row belongs to."""
        live = list[Locked]()
        matched: dict[Named, list[IncomingRecord]] = {}  # what is not of its row must not be tried again in its name
        for named, records in sorted(self.messages.items()):
            row = found.get(named[0])
            own, others = self._intake.match(row or self._held.get(named[0]), named, records, self._event_ids[named])
            self.rejected += others
            if row is None or not own:
                continue
            if not self._is_live(row):
                # Done already; or in its back-off, and an old record of it came early: the relay sends a new one.
                self.duplicates += len(own)
            else:
                self.duplicates += len(own) - 1
                live.append(row)
                matched[named] = own
        self.messages = matched
        return live

    def _set_locked_aside(
        self, missing: set[int], found: Mapping[int, Locked], is_young: Callable[[IncomingRecord], bool]
    ) -> None:
        """Leave out what others have locked; what is of no such row is rejected by ``live``."""
        blocked_by: dict[str, int] = {}
        self._held = self._intake.repository.existing(missing)
        for row_id, held in self._held.items():
            named, key = (row_id, held.event_type), held.message_key
            if named not in self.messages:
                continue  # another's record with this row's id
            own, others = self._intake.match(held, named, self.messages.pop(named), self._event_ids[named])
            self.rejected += others
            self.locked += own
            if any(map(is_young, own)):
                blocked_by[key] = min(row_id, blocked_by.get(key, row_id))
        for row in found.values():
            if row.id > blocked_by.get(row.message_key, row.id):
                self.locked += self.messages.pop((row.id, row.event_type), [])

    def _is_live(self, row: Locked) -> bool:
        announced = self._portion.announced
        if announced is not None:
            return row.status in UNFINISHED and row.counts == announced.counts
        return row.status in UNFINISHED and (row.is_due or row.status == UNFINISHED[1])


def _suspects_aside(live: list[Locked], taking: _Taking) -> tuple[list[Locked], list[Portion]]:
    """Leave rows that were interrupted before, and what follows them in their keys, to the end of the batch."""
    suspects = [row for row in live if row.interruptions]
    if not suspects:
        return live, []
    oldest: dict[str, int] = {}
    for row in suspects:
        oldest.setdefault(row.message_key, row.id)
    aside = {row.id for row in live if row.id >= oldest.get(row.message_key, row.id + 1)}
    all_of_them = Batch(Portion([]), live, taking.messages)
    suspect_ids = {row.id for row in suspects}
    return [row for row in live if row.id not in aside], [
        *(Portion([record], Way.ANNOUNCED, is_last=True) for record in all_of_them.records_of(suspect_ids)),
        *whole(all_of_them.records_of(aside - suspect_ids), is_last=True),
    ]


def _shown(event_id: str) -> str:
    text = repr(event_id)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
