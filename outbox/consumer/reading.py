"""Reads what a consumer received: records into the rows that they name, rows into deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outbox.brokers.base import IncomingRecord
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.consumer.planning import Readable
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import Delivery, HandlerRegistry
from outbox.exceptions import (
    EnvelopeError,
    NoHandlerError,
    TooManyInterruptionsError,
    UnknownEventTypeError,
    UnreadableError,
)
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rejections import Rejection
from outbox.storage.rows import Identity, Locked
from outbox.wire.envelope import decode_envelope, decode_message, stated_event_id

Messages = dict[tuple[int, str], list[IncomingRecord]]
"""The records of a batch by row and event type: a foreign record with the id of a row must not hide the row's own."""

EventIds = dict[tuple[int, str], list[str]]
"""The event ids of those records, in their order; the row's id stands for none."""

_SHOWN_CHARACTERS: Final = 160
"""Of an event id in a reason, which has room for two: a record may state one of any length."""


def decode_records(records: Sequence[IncomingRecord], *, service: str) -> tuple[Messages, EventIds, list[Rejection]]:
    """Return the rows that ``records`` name, the records' event ids, and what names no row of ``service``."""
    messages: Messages = {}
    event_ids: EventIds = {}
    rejected: list[Rejection] = []
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
    return messages, event_ids, rejected


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes deliveries of one service's rows."""

    repository: ConsumerRows
    contracts: ContractRegistry
    handlers: HandlerRegistry

    def match(
        self,
        row: Locked | Identity | None,
        named: tuple[int, str],
        records: list[IncomingRecord],
        event_ids: list[str],
    ) -> tuple[list[IncomingRecord], Sequence[Rejection]]:
        """Return those of ``records``, which name the row and type ``named``, that are of ``row``, and the others.

        ``event_ids`` are theirs.

        Those of another event are told by its id where row and record state one: a database that was restored gives
        ids out again, and records of the rows that had them before are on the topic.
        """
        row_id, event_type = named
        if row is None:
            reason = f"no row {row_id} in {self._table}: pruned or foreign"
            return [], [Rejection(record, reason) for record in records]
        if row.event_type != event_type or event_type in self.repository.foreign_types:
            reason = f"row {row_id} of {self._table} is a {row.event_type!r} and not this service's {event_type!r}"
            return [], [Rejection(record, reason) for record in records]
        if event_ids.count(row.event_id) == len(records) or not stated_event_id(row.event_id, outbox_id=row_id):
            return records, ()
        reason = f"event_id of row {row_id} of {self._table} is {_shown(row.event_id)}, that of the record is"
        own: list[IncomingRecord] = []
        others: list[Rejection] = []
        for record, event_id in zip(records, event_ids, strict=True):
            if event_id == row.event_id or not stated_event_id(event_id, outbox_id=row_id):
                own.append(record)
            else:
                others.append(Rejection(record, f"{reason} {_shown(event_id)}: it is of an earlier row with that id"))
        return own, others

    @property
    def _table(self) -> str:
        return self.repository.route.table

    def read(self, row: Locked, *, is_announced: bool = False) -> Readable:
        """Return a row as its handler sees it. ``is_announced``: its last try is, however often it was interrupted.

        :raises UnreadableError: it can never be handled, as far as this deployment knows.
        """
        if row.interruptions >= MAX_INTERRUPTIONS and not is_announced:
            raise TooManyInterruptionsError(row.interruptions)
        repository = self.repository
        stored = repository.payload_of(row.id) if row.payload is None else row.payload
        envelope = decode_envelope(stored, outbox_id=row.id, event_type=row.event_type, event_id=row.event_id)
        try:
            contract = self.contracts.get(row.event_type)
        except UnknownEventTypeError as error:
            raise UnreadableError(str(error)) from error
        handler = self.handlers.get(row.event_type)
        if handler is None:
            raise NoHandlerError(f"event type {row.event_type!r} has no handler; declare one with @handles(...)")
        delivery = Delivery(
            outbox_id=row.id,
            event_id=envelope.event_id,
            event_type=row.event_type,
            event_version=envelope.event_version,
            message_key=row.message_key,
            aggregate_id=envelope.aggregate_id,
            payload=contract.decode(envelope.payload, version=envelope.event_version),
            attempt=row.retry_count + 1,
            database=repository.route.database,
            traceparent=row.traceparent,
        )
        return Readable(delivery, handler)


def _shown(event_id: str) -> str:
    text = repr(event_id)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
