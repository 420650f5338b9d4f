"""The JSON in the ``payload`` column and the JSON on the wire. Pure: bytes in, bytes out.

A row holds ``{event_id, event_type, event_version, aggregate_id, payload}``; a record on the topic holds
``{outbox_id, event_id, event_type, event_version, service_name, aggregate_id, payload}``. The inner ``payload`` passes
through as raw bytes: neither relay nor consumer parses it to move it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from outbox.exceptions import EnvelopeError

DEFAULT_VERSION: Final = "v1"
"""What an absent ``event_version`` means."""

EVENT_ID_MAX_LENGTH: Final = 128
"""What the column ``event_id`` of a row holds."""

REFERENCE_HEADER: Final = "payload-by-reference"
"""Present on a record whose ``payload`` is null because it is too large: the outbox row has it."""

INSTALLATION_HEADER: Final = "installation_id"
"""The installation that holds the record's row. It comes first, as each consumer reads it of each record."""

Headers = tuple[tuple[str, bytes], ...]

_NULL: Final = msgspec.Raw(b"null")


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What the ``payload`` column holds."""

    event_id: str
    event_type: str
    event_version: str
    aggregate_id: str
    payload: msgspec.Raw


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a record on the topic holds, in the field order that the Go services write."""

    outbox_id: int
    event_id: str
    event_type: str
    event_version: str
    service_name: str
    aggregate_id: str
    payload: msgspec.Raw


class _StoredEnvelope(msgspec.Struct, frozen=True):
    """A row as other software may have written it: only ``payload`` is indispensable."""

    payload: msgspec.Raw
    event_id: str | None = None
    event_type: str | None = None
    event_version: str | None = None
    aggregate_id: str | None = None


class _ReceivedMessage(msgspec.Struct, frozen=True):
    """A record as other software may have written it: the row's id is indispensable, the rest has fallbacks."""

    outbox_id: int
    event_type: str
    event_id: str | None = None
    event_version: str | None = None
    service_name: str | None = None
    aggregate_id: str | None = None
    payload: msgspec.Raw = _NULL


_stored_decoder: Final = msgspec.json.Decoder(_StoredEnvelope)
_received_decoder: Final = msgspec.json.Decoder(_ReceivedMessage)
_encoder: Final = msgspec.json.Encoder()

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises; the last for JSON that is nested more deeply than a decoder follows."""


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the JSON for the ``payload`` column."""
    return _encoder.encode(envelope)


def decode_envelope(raw: bytes | str, *, outbox_id: int, event_type: str, event_id: str = "") -> Envelope:
    """Read a ``payload`` column; absent fields fall back to what the row's own columns say.

    ``event_id`` is the row's column: where it states an id, it goes before the one in ``raw``, so that a record always
    states what its consumer compares it with.

    :raises EnvelopeError: it is not JSON, has no ``payload``, or speaks of another event type than its row.
    """
    try:
        stored = _stored_decoder.decode(raw)
    except _UNREADABLE as error:
        raise EnvelopeError(f"column 'payload' of row {outbox_id} is not an envelope: {error}") from error
    if stored.event_type and stored.event_type != event_type:
        raise EnvelopeError(
            f"column 'payload' of row {outbox_id} says event_type {stored.event_type!r}, the row says {event_type!r}"
        )
    return Envelope(
        event_id=event_id or stored.event_id or str(outbox_id),
        event_type=event_type,
        event_version=stored.event_version or DEFAULT_VERSION,
        aggregate_id=stored.aggregate_id or "",
        payload=stored.payload,
    )


def encode_message(envelope: Envelope, *, outbox_id: int, service: str, by_reference: bool = False) -> bytes:
    """Return the record's value; ``by_reference`` leaves the payload to the outbox row."""
    return _encoder.encode(
        Message(
            outbox_id=outbox_id,
            event_id=envelope.event_id,
            event_type=envelope.event_type,
            event_version=envelope.event_version,
            service_name=service,
            aggregate_id=envelope.aggregate_id,
            payload=_NULL if by_reference else envelope.payload,
        )
    )


def decode_message(raw: bytes | None) -> Message:
    """Read a record's value.

    :raises EnvelopeError: it is empty, not JSON, or has no usable ``outbox_id`` and ``event_type``.
    """
    if not raw:
        raise EnvelopeError("the record has no value")
    try:
        received = _received_decoder.decode(raw)
    except _UNREADABLE as error:
        raise EnvelopeError(f"the record's value is not an outbox message: {error}") from error
    if not 0 < received.outbox_id < 2**63:
        raise EnvelopeError(f"the record's value is not an outbox message: outbox_id is {received.outbox_id}")
    return Message(
        outbox_id=received.outbox_id,
        event_id=received.event_id or str(received.outbox_id),
        event_type=received.event_type,
        event_version=received.event_version or DEFAULT_VERSION,
        service_name=received.service_name or "",
        aggregate_id=received.aggregate_id or "",
        payload=received.payload,
    )


def stated_event_id(event_id: str, *, outbox_id: int) -> str:
    """Return the event id that a row or record states; an empty text for none: the row's id is but the fallback."""
    return "" if event_id == str(outbox_id) else event_id


@lru_cache(maxsize=1024)
def _headers_of_type(event_type: str, event_version: str, service: str, installation: str) -> Headers:
    return (
        (INSTALLATION_HEADER, installation.encode()),
        ("event_type", event_type.encode()),
        ("event_version", event_version.encode()),
        ("service_name", service.encode()),
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", event_type.encode()),
        ("ce_source", f"/outbox/{service}".encode()),
    )


def headers_of(
    envelope: Envelope, *, service: str, installation: str, traceparent: str = "", by_reference: bool = False
) -> Headers:
    """Return the record's headers: our own names, W3C ``traceparent``, and CloudEvents in Kafka binary mode.

    Source: CloudEvents 1.0, "Kafka Protocol Binding", 3.2 (``ce_`` prefix, ``content-type``).
    """
    event_id = envelope.event_id.encode()
    headers = [
        *_headers_of_type(envelope.event_type, envelope.event_version, service, installation),
        ("event_id", event_id),
        ("ce_id", event_id),
    ]
    if envelope.aggregate_id:
        headers.append(("ce_subject", envelope.aggregate_id.encode()))
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    if by_reference:
        headers.append((REFERENCE_HEADER, b"true"))
    return tuple(headers)
