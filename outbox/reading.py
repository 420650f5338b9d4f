"""Reads what a consumer received: records into the rows that they name, rows into deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outbox.brokers.base import IncomingRecord
from outbox.contracts import ContractRegistry
from outbox.envelope import decode_envelope, decode_message
from outbox.exceptions import (
    EnvelopeError,
    NoHandlerError,
    TooManyInterruptionsError,
    UnknownEventTypeError,
    UnreadableError,
)
from outbox.handlers import Delivery, HandlerRegistry
from outbox.isolation import MAX_INTERRUPTIONS
from outbox.planning import Readable
from outbox.rejections import Rejection
from outbox.repository import OutboxRepository
from outbox.rows import Locked

Messages = dict[tuple[int, str], list[IncomingRecord]]
"""The records of a batch by row and event type: a foreign record with the id of a row must not hide the row's own."""


def decode_records(records: Sequence[IncomingRecord], *, service: str) -> tuple[Messages, list[Rejection]]:
    """Return the rows that ``records`` name, and the records that name none of this service."""
    messages: Messages = {}
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
            messages.setdefault((message.outbox_id, message.event_type), []).append(record)
    return messages, rejected


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes deliveries of one service's rows."""

    repository: OutboxRepository
    contracts: ContractRegistry
    handlers: HandlerRegistry

    def read(self, row: Locked) -> Readable:
        """Return a row as its handler sees it.

        :raises UnreadableError: it can never be handled, as far as this deployment knows.
        """
        if row.interruptions >= MAX_INTERRUPTIONS:
            raise TooManyInterruptionsError(row.interruptions)
        return self.read_anyway(row)

    def read_anyway(self, row: Locked) -> Readable:
        """Return a row as its handler sees it, however often it was interrupted: its last try has been announced.

        :raises UnreadableError: it can never be handled, as far as this deployment knows.
        """
        repository = self.repository
        stored = repository.payload_of(row.id) if row.payload is None else row.payload
        envelope = decode_envelope(stored, outbox_id=row.id, event_type=row.event_type)
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
