"""Reads rows: what is stored of an event becomes the delivery that its handler gets."""

from __future__ import annotations

from dataclasses import dataclass

from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.consumer.planning import Readable
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import Delivery, HandlerRegistry
from outbox.exceptions import NoHandlerError, TooManyInterruptionsError, UnknownEventTypeError, UnreadableError
from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rows import Locked
from outbox.wire.envelope import decode_envelope


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes deliveries of one service's rows."""

    repository: ConsumerRows
    contracts: ContractRegistry
    handlers: HandlerRegistry

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
