"""The message on the wire and in the payload column: round trips, shapes of other software, garbage."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.exceptions import EnvelopeError
from outbox.wire.envelope import (
    INSTALLATION_HEADER,
    REFERENCE_HEADER,
    Envelope,
    decode_envelope,
    decode_message,
    encode_envelope,
    encode_message,
    headers_of,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
filled_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
ids = st.integers(min_value=1, max_value=2**63 - 1)

DEEP = b"[" * 100_000 + b"]" * 100_000
"""Valid JSON, nested more deeply than any decoder follows."""


def envelope_of(value: Any, **fields: str) -> Envelope:
    values = {"event_id": "e-1", "event_type": "a.b", "event_version": "v1", "aggregate_id": "agg"} | fields
    return Envelope(payload=msgspec.Raw(json.dumps(value).encode()), **values)


def plain(message: Any) -> dict[str, Any]:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return fields | {"payload": json.loads(bytes(fields["payload"]))}


@given(filled_texts, filled_texts, filled_texts, texts, json_values, ids)
def test_envelope_comes_back_from_its_column(
    event_id: str, event_type: str, version: str, aggregate_id: str, value: Any, row_id: int
) -> None:
    envelope = envelope_of(
        value, event_id=event_id, event_type=event_type, event_version=version, aggregate_id=aggregate_id
    )

    found = decode_envelope(encode_envelope(envelope).decode(), outbox_id=row_id, event_type=event_type)

    assert plain(found) == plain(envelope)


@given(filled_texts, filled_texts, filled_texts, texts, texts, json_values, ids)
def test_message_comes_back_from_its_record(
    event_id: str, event_type: str, version: str, aggregate_id: str, service: str, value: Any, row_id: int
) -> None:
    envelope = envelope_of(
        value, event_id=event_id, event_type=event_type, event_version=version, aggregate_id=aggregate_id
    )

    found = decode_message(encode_message(envelope, outbox_id=row_id, service=service))

    assert plain(found) == plain(envelope) | {"outbox_id": row_id, "service_name": service}


def test_record_has_the_fields_of_the_go_services_in_their_order() -> None:
    value = json.loads(encode_message(envelope_of({"n": 1}), outbox_id=7, service="agent"))

    assert list(value.items()) == [
        ("outbox_id", 7),
        ("event_id", "e-1"),
        ("event_type", "a.b"),
        ("event_version", "v1"),
        ("service_name", "agent"),
        ("aggregate_id", "agg"),
        ("payload", {"n": 1}),
    ]


def test_column_has_the_shared_fields() -> None:
    assert list(json.loads(encode_envelope(envelope_of(1)))) == [
        "event_id",
        "event_type",
        "event_version",
        "aggregate_id",
        "payload",
    ]


def test_payload_is_passed_on_byte_for_byte() -> None:
    raw = b'{ "n" : 1.50, "big": 123456789012345678901234567890, "t": "\\u00e9" }'
    envelope = Envelope(event_id="e", event_type="a.b", event_version="v1", aggregate_id="", payload=msgspec.Raw(raw))

    assert raw in encode_message(
        decode_envelope(encode_envelope(envelope), outbox_id=1, event_type="a.b"), outbox_id=1, service="agent"
    )


def test_payload_by_reference_is_null() -> None:
    found = decode_message(encode_message(envelope_of({"n": 1}), outbox_id=7, service="agent", by_reference=True))

    assert bytes(found.payload) == b"null"
    assert found.outbox_id == 7


@pytest.mark.parametrize(
    "absent",
    [
        {},
        {"event_id": "", "event_type": "", "event_version": "", "aggregate_id": ""},
        {"event_id": None, "event_type": None, "event_version": None},
    ],
)
def test_absent_fields_of_a_column_fall_back_to_the_row(absent: dict[str, Any]) -> None:
    found = decode_envelope(json.dumps(absent | {"payload": {"n": 1}}), outbox_id=7, event_type="a.b")

    assert (found.event_id, found.event_type, found.event_version, found.aggregate_id) == ("7", "a.b", "v1", "")


@pytest.mark.parametrize(
    "absent",
    [
        {},
        {"event_id": "", "event_version": "", "service_name": "", "aggregate_id": ""},
        {"event_id": None, "event_version": None, "service_name": None},
    ],
)
def test_absent_fields_of_a_record_have_fallbacks(absent: dict[str, Any]) -> None:
    found = decode_message(json.dumps(absent | {"outbox_id": 7, "event_type": "a.b"}).encode())

    assert (found.event_id, found.event_version, found.service_name, found.aggregate_id) == ("7", "v1", "", "")
    assert bytes(found.payload) == b"null"


def test_unknown_fields_are_passed_over() -> None:
    decode_envelope('{"payload": {}, "added_later": [1]}', outbox_id=7, event_type="a.b")
    decode_message(b'{"outbox_id": 7, "event_type": "a.b", "added_later": [1]}')


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "not an envelope"),
        ("no json", "not an envelope"),
        ("[]", "not an envelope"),
        ('{"event_id": "e"}', "payload"),
        ('{"payload": {}, "event_id": 7}', "event_id"),
        ('{"payload": {}', "not an envelope"),
        ('{"payload": {}, "event_type": "c.d"}', "says event_type 'c.d', the row says 'a.b'"),
        (b'{"payload": {}, "event_id": "\xff"}', "not an envelope"),
        (b'{"payload": ' + DEEP + b"}", "not an envelope"),
    ],
)
def test_unreadable_column_is_an_envelope_error_with_row_and_reason(raw: bytes | str, reason: str) -> None:
    with pytest.raises(EnvelopeError, match="row 7") as caught:
        decode_envelope(raw, outbox_id=7, event_type="a.b")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "no value"),
        (b"", "no value"),
        (b"\x00\x01", "not an outbox message"),
        (b"null", "not an outbox message"),
        (b'"text"', "not an outbox message"),
        (b"{}", "outbox_id"),
        (b'{"outbox_id": 7}', "event_type"),
        (b'{"outbox_id": "7", "event_type": "a.b"}', "outbox_id"),
        (b'{"outbox_id": true, "event_type": "a.b"}', "outbox_id"),
        (b'{"outbox_id": 7.5, "event_type": "a.b"}', "outbox_id"),
        (b'{"outbox_id": 0, "event_type": "a.b"}', "outbox_id is 0"),
        (b'{"outbox_id": -7, "event_type": "a.b"}', "outbox_id is -7"),
        (b'{"outbox_id": 9223372036854775808, "event_type": "a.b"}', "outbox_id is 9223372036854775808"),
        (b'{"outbox_id": 7, "event_type": "\xff"}', "not an outbox message"),
        (b'{"outbox_id": 7, "event_type": "\\ud800"}', "not an outbox message"),
        (b'{"outbox_id": 7, "event_type": "a.b", "payload": ' + DEEP + b"}", "not an outbox message"),
        (b'{"outbox_id": 7, "event_type": "a.b", "foreign": ' + DEEP + b"}", "not an outbox message"),
    ],
)
def test_garbage_is_an_envelope_error_with_its_reason(raw: bytes | None, reason: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        decode_message(raw)
    assert reason in str(caught.value)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_an_envelope_error(raw: bytes) -> None:
    try:
        found = decode_message(raw)
    except EnvelopeError:
        return
    assert found.outbox_id > 0


@given(texts | json_values.map(json.dumps))
def test_any_text_is_an_envelope_or_an_envelope_error(raw: str) -> None:
    try:
        found = decode_envelope(raw, outbox_id=7, event_type="a.b")
    except EnvelopeError:
        return
    assert found.event_type == "a.b"


def test_headers_say_what_the_record_is() -> None:
    headers = headers_of(
        envelope_of(1), service="active-scheduler", installation="of-this-database", traceparent="00-aa-bb-01"
    )

    assert headers[0] == (INSTALLATION_HEADER, b"of-this-database"), "what every consumer reads comes first"
    assert dict(headers[1:]) == {
        "event_id": b"e-1",
        "event_type": b"a.b",
        "event_version": b"v1",
        "service_name": b"active-scheduler",
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": b"e-1",
        "ce_type": b"a.b",
        "ce_source": b"/outbox/active-scheduler",
        "ce_subject": b"agg",
        "traceparent": b"00-aa-bb-01",
    }


def test_headers_leave_out_what_is_empty() -> None:
    headers = dict(headers_of(envelope_of(1, aggregate_id=""), service="agent", installation="i"))

    assert not {"ce_subject", "traceparent", REFERENCE_HEADER} & set(headers)


def test_header_marks_a_payload_by_reference() -> None:
    headers = dict(headers_of(envelope_of(1), service="agent", installation="i", by_reference=True))

    assert headers[REFERENCE_HEADER] == b"true"
