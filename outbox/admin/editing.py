"""Mends the payload of a dead event: what is saved keeps the contract of its event type, and its key."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from django.http import HttpRequest

from outbox.admin import operations
from outbox.admin.details import OctetLength
from outbox.admin.rendering import size_text, visible
from outbox.declarations.contracts import EventContract, contracts
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import EnvelopeError, InvalidEventError, OutboxError, PayloadError, UnknownEventTypeError
from outbox.lifecycle import Status
from outbox.models import OutboxMessage
from outbox.publishing import encode_stored
from outbox.storage.querysets import rows_of
from outbox.wire.envelope import decode_envelope
from outbox.wire.nesting import TOO_DEEP, is_nested_too_deep

EDITABLE_BYTES: Final = 1024 * 1024
"""A larger payload is no text to edit by hand, and Django refuses forms above ``DATA_UPLOAD_MAX_MEMORY_SIZE``."""


def editable(event_type: str, service: str) -> bool:
    """Say whether ``service`` has a contract to check an edited payload of ``event_type`` by."""
    try:
        return contracts.get(event_type).service == service
    except UnknownEventTypeError:
        return False


class EditForm:
    """The form that edits one dead row. ``text`` is what its field holds, ``problem`` why it was not saved."""

    def __init__(self, service: str, row: OutboxMessage, contract: EventContract[msgspec.Struct]) -> None:
        self.service = service
        self.row_id: int = row.pk
        self.key = row.message_key
        self.event_type = row.event_type
        self.contract = contract
        self.version = contract.version
        self.stored_version = ""
        self._column_event_id = row.event_id
        self.event_id = row.event_id or str(row.pk)
        self.unchanged_since: datetime | None = row.updated_at
        self.text = ""
        self.problem = ""
        self._stored = b""
        self._take(row.payload)

    @classmethod
    def of(cls, model: type[OutboxMessage], route: ServiceRoute, row_id: int) -> EditForm | None:
        """Return the form of a row; None where it is not dead, too large, or of a type without a contract here."""
        rows = rows_of(model, route.database).filter(pk=row_id, status=Status.DEAD.value)
        row = rows.annotate(size=OctetLength("payload")).filter(size__lte=EDITABLE_BYTES).first()
        if row is None or not editable(row.event_type, route.service):
            return None
        return cls(route.service, row, contracts.get(row.event_type))

    @property
    def shown_key(self) -> str:
        return visible(self.key)

    @property
    def token(self) -> str:
        """Return what says which state of the row the form shows."""
        return self.unchanged_since.isoformat() if self.unchanged_since else "undated"

    def read(self, request: HttpRequest) -> bool:
        """Take what the operator wrote; say whether it can be saved, else why not in ``problem``."""
        written = request.POST.get("payload", "")
        self.text = _shown(written)
        if request.POST.get("token") != self.token:
            self.problem = "Somebody else changed this event since you opened it. Open it again to see its payload now."
            return False
        try:
            self._stored = self._encoded(written)
        except OutboxError as error:
            self.problem = visible(str(error))
            return False
        return True

    def save(self, request: HttpRequest, *, then_replay: bool) -> bool:
        """Write what was read; return False when somebody else changed the row meanwhile.

        :raises NotDoneError: the database is away or busy.
        """
        return operations.edit(
            request,
            self.service,
            self.row_id,
            payload=self._stored,
            unchanged_since=self.unchanged_since,
            then_replay=then_replay,
        )

    def _take(self, stored: str) -> None:
        """Show the payload inside the envelope; where it cannot be read, the column as it is."""
        try:
            envelope = decode_envelope(
                stored, outbox_id=self.row_id, event_type=self.event_type, event_id=self._column_event_id
            )
            self.text = _shown(msgspec.json.format(bytes(envelope.payload), indent=2).decode())
        except (EnvelopeError, msgspec.MsgspecError, UnicodeError, RecursionError):
            self.text = _shown(stored)
            self.problem = (
                "The stored payload is not an envelope: below is the column as it is. Replace it by the payload alone."
            )
            return
        self.event_id, self.stored_version = envelope.event_id, visible(envelope.event_version)

    def _encoded(self, text: str) -> bytes:
        """Return the payload column for what was written.

        :raises OutboxError: it does not keep the contract, belongs to another key, or is too large.
        """
        raw = text.encode("utf-8", "surrogatepass")
        if is_nested_too_deep(raw):
            raise InvalidEventError(self.event_type, field="payload", reason=TOO_DEEP)
        payload = self.contract.decode(raw, version=self.contract.version)
        key = self.contract.message_key(payload)
        if key != self.key:
            raise InvalidEventError(
                self.event_type,
                field="message_key",
                reason=f"the payload belongs to key {key!r}, the row to {self.key!r}; an edit cannot move an event",
            )
        aggregate_id = self.contract.aggregate_text(payload)
        try:
            compact = msgspec.json.format(raw, indent=-1)
        except msgspec.MsgspecError as error:
            raise PayloadError(f"payload of {self.event_type!r}: {error}") from error
        if len(compact) > EDITABLE_BYTES:
            raise InvalidEventError(
                self.event_type, field="payload", reason=f"it has {size_text(len(compact))}; edit less than 1 MiB"
            )
        return encode_stored(self.contract, compact, event_id=self.event_id, aggregate_id=aggregate_id)


def _shown(text: str) -> str:
    """Return what the field shows: what cannot be seen becomes an escape, which inside of JSON means the same."""
    return visible(text.replace("\r\n", "\n"))
