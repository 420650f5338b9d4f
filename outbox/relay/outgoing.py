"""What a relay makes of due rows: records for the broker."""

from __future__ import annotations

from datetime import datetime

from outbox.brokers.base import OutgoingRecord
from outbox.storage.installations import InstallationId
from outbox.storage.relay_rows import RelayRows
from outbox.storage.rows import Due
from outbox.wire.envelope import Envelope, decode_envelope, encode_message, headers_of


class OutgoingRecords:
    """Encodes the rows of one service."""

    def __init__(self, repository: RelayRows) -> None:
        self._repository = repository
        self._route = repository.route
        self._installation_id = InstallationId(self._route.database)

    def prepare(self) -> None:
        """Read, once, what each record needs to know of the database.

        :raises DatabaseError: the database is unavailable.
        """
        self._installation_id()

    def of(self, row: Due, sent_at: datetime | None) -> OutgoingRecord:
        """Return the record of a row; a payload that the row does not bring along stays there, by reference.

        :raises EnvelopeError: the row can never be sent.
        :raises DatabaseError: the database is unavailable.
        """
        by_reference = row.payload is None
        stored = self._repository.payload_of(row.id) if row.payload is None else row.payload
        envelope: Envelope = decode_envelope(stored, outbox_id=row.id, event_type=row.event_type, event_id=row.event_id)
        return OutgoingRecord(
            outbox_id=row.id,
            topic=self._route.topic,
            key=row.message_key,
            value=encode_message(envelope, outbox_id=row.id, service=self._route.service, by_reference=by_reference),
            headers=headers_of(
                envelope,
                service=self._route.service,
                installation=self._installation_id(),
                traceparent=row.traceparent,
                by_reference=by_reference,
            ),
            sent_at=sent_at,
        )
