"""What holds for every envelope, every message and every text, beyond the examples beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbox.exceptions import EnvelopeError
from outbox.wire.envelope import (
    REFERENCE_HEADER,
    Envelope,
    Message,
    decode_envelope,
    decode_message,
    encode_envelope,
    encode_message,
    headers_of,
)
from tests.properties import bounded

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["", "\x00", "\x00\x00a\x00", "\u2028", "\ufeff", "\uffff", "\U0010ffff", "\\u0000", '"', "</script>", "e\u0301"]
)
filled_texts = texts.filter(bool)
ids = st.integers(1, 2**63 - 1)
blanks = st.text(" \t\r\n", max_size=2)
numbers = st.integers().map(str) | st.from_regex(
    r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)


def json_text(text: str, *, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)


strings = st.builds(lambda text, ascii_only: json_text(text, ascii_only=ascii_only), texts, st.booleans())


def _list_text(items: list[str], blank: str) -> str:
    return f"[{blank}{f'{blank},'.join(items)}{blank}]"


def _object_text(items: list[tuple[str, str]], blank: str) -> str:
    members = f",{blank}".join(f"{name}{blank}:{value}" for name, value in items)
    return f"{{{blank}{members}{blank}}}"


json_texts = st.recursive(
    numbers | strings | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.builds(_list_text, st.lists(inner, max_size=4), blanks)
        | st.builds(_object_text, st.lists(st.tuples(strings, inner), max_size=4), blanks)
    ),
    max_leaves=10,
)
"""JSON as any software may write it: any blanks, escapes and numbers, names that repeat."""

envelopes = st.builds(
    lambda event_id, event_type, version, aggregate_id, payload: Envelope(
        event_id=event_id,
        event_type=event_type,
        event_version=version,
        aggregate_id=aggregate_id,
        payload=msgspec.Raw(payload.encode()),
    ),
    filled_texts,
    filled_texts,
    filled_texts,
    texts,
    json_texts,
)


def fields_of(read: Envelope | Message) -> tuple[str, str, str, str, bytes]:
    return read.event_id, read.event_type, read.event_version, read.aggregate_id, bytes(read.payload)


@bounded(150)
@given(envelopes, ids, texts)
def test_everything_comes_through_column_and_topic_unchanged_the_payload_byte_for_byte(
    envelope: Envelope, row_id: int, service: str
) -> None:
    stored = decode_envelope(
        encode_envelope(envelope).decode(), outbox_id=row_id % 7 + 1, event_type=envelope.event_type
    )
    message = decode_message(encode_message(stored, outbox_id=row_id, service=service))

    assert fields_of(stored) == fields_of(envelope)
    assert fields_of(message) == fields_of(envelope)
    assert (message.outbox_id, message.service_name) == (row_id, service)


@st.composite
def written_elsewhere(draw: st.DrawFn, fields: Mapping[str, str]) -> str:
    """Return ``fields`` (name to JSON) as other software may write them: in any order, among others, with blanks."""
    names = strings.filter(lambda name: json.loads(name) not in Message.__struct_fields__)
    foreign = draw(st.dictionaries(names, json_texts, max_size=2))
    known = {json_text(name, ascii_only=False): value for name, value in fields.items()}
    members = draw(st.permutations([*(foreign | known).items()]))
    return draw(blanks) + _object_text(list(members), draw(blanks)) + draw(blanks)


@bounded(120)
@given(envelopes, ids, texts, st.booleans(), st.data())
def test_message_is_the_same_however_its_json_is_written_and_what_is_left_out_has_its_fallback(
    envelope: Envelope, row_id: int, service: str, ascii_only: bool, data: st.DataObject
) -> None:
    fallbacks = {
        "event_id": str(row_id),
        "event_version": "v1",
        "service_name": "",
        "aggregate_id": "",
        "payload": msgspec.Raw(b"null"),
    }
    left_out = data.draw(st.sets(st.sampled_from(sorted(fallbacks)), max_size=2))
    written = {name: getattr(envelope, name) for name in Envelope.__struct_fields__} | {"service_name": service}
    fields = {
        name: bytes(value).decode() if name == "payload" else json_text(value, ascii_only=ascii_only)
        for name, value in written.items()
        if name not in left_out
    }

    message = decode_message(data.draw(written_elsewhere({"outbox_id": str(row_id)} | fields)).encode())

    assert message.outbox_id == row_id
    for name, value in written.items():
        expected = fallbacks[name] if name in left_out else value
        found = getattr(message, name)
        assert (bytes(found) == bytes(expected)) if name == "payload" else (found == expected)


@bounded(120)
@given(numbers | strings | st.sampled_from(["null", "true", "[1]", "1e400", "-0", "9223372036854775807.0"]))
def test_outbox_id_is_the_number_that_is_written_or_the_record_is_refused(literal: str) -> None:
    raw = f'{{"outbox_id": {literal}, "event_type": "a.b"}}'.encode()
    try:
        found = decode_message(raw).outbox_id
    except EnvelopeError:
        assert not (literal.isdecimal() and literal.isascii() and 0 < int(literal) < 2**63)
    else:
        assert found == Fraction(literal)
        assert 0 < found < 2**63


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a good column or record in which something was changed, lost or put in."""
    envelope = draw(envelopes)
    good = draw(
        st.sampled_from([encode_envelope(envelope), encode_message(envelope, outbox_id=draw(ids), service="agent")])
    )
    at = draw(st.integers(0, len(good)))
    lost = draw(st.integers(0, 3))
    return (
        good[:at]
        + draw(st.binary(max_size=3) | st.sampled_from([b'"', b"}", b",", b"\\", b"\\ud800"]))
        + (good[at + lost :])
    )


anything = st.binary(max_size=80) | damaged() | json_texts.map(str.encode)


@bounded(250)
@given(anything)
def test_whatever_is_read_from_a_record_is_whole_and_everything_else_is_refused(raw: bytes) -> None:
    try:
        message = decode_message(raw)
    except EnvelopeError:
        return
    assert 0 < message.outbox_id < 2**63
    assert message.event_id
    assert message.event_version
    again = Envelope(**{name: getattr(message, name) for name in Envelope.__struct_fields__})
    found = decode_message(encode_message(again, outbox_id=message.outbox_id, service=message.service_name))
    assert fields_of(found) == fields_of(message)


@bounded(250)
@given(anything | anything.map(lambda raw: raw.decode(errors="surrogateescape")), ids, st.booleans())
def test_whatever_is_read_from_a_column_can_be_sent_and_everything_else_is_refused(
    raw: bytes | str, row_id: int, by_reference: bool
) -> None:
    try:
        envelope = decode_envelope(raw, outbox_id=row_id, event_type="a.b")
    except EnvelopeError:
        return
    headers = headers_of(
        envelope, service="agent", installation="i", traceparent="00-aa-bb-01", by_reference=by_reference
    )
    message = decode_message(encode_message(envelope, outbox_id=row_id, service="agent", by_reference=by_reference))

    assert envelope.event_type == "a.b"
    assert fields_of(message)[:4] == fields_of(envelope)[:4]
    assert bytes(message.payload) == (b"null" if by_reference else bytes(envelope.payload))
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert (REFERENCE_HEADER in names) == by_reference
    assert dict(headers)["event_id"].decode() == envelope.event_id


@bounded(100)
@given(envelopes, filled_texts, ids)
def test_column_that_speaks_of_another_event_type_is_refused(envelope: Envelope, row_type: str, row_id: int) -> None:
    assume(row_type != envelope.event_type)

    with pytest.raises(EnvelopeError, match=f"row {row_id} "):
        decode_envelope(encode_envelope(envelope), outbox_id=row_id, event_type=row_type)
