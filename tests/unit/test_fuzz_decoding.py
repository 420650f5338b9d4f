"""Any bytes are a value or the library's own error: messages, payload columns, payloads of the real events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.admin.rendering import SHOWN_CHARACTERS, shown_bytes, shown_json, visible
from outbox.declarations.contracts import ContractRegistry, contracts, event, upcasts
from outbox.exceptions import EnvelopeError, PayloadError, UnknownVersionError
from outbox.wire.envelope import (
    Envelope,
    Message,
    decode_envelope,
    decode_message,
    encode_envelope,
    encode_message,
    headers_of,
)
from tests import fuzz
from tests.fuzz import fuzzing
from tests.unit.test_service_contracts import EVENTS

ENVELOPE: Final = {"event_id": "e-1", "event_type": "a.b", "event_version": "v1", "aggregate_id": "agg"}
MESSAGE: Final = {"outbox_id": 7, **ENVELOPE, "service_name": "agent"}
PAYLOADS: Final = {event[0]: fuzz.full_payload(event[0]) for event in EVENTS}

every_event = pytest.mark.parametrize("event_type", PAYLOADS)
payloads = st.sampled_from(list(PAYLOADS.values())).map(fuzz.document)
any_bytes = st.binary(max_size=200) | fuzz.raw_values.map(lambda raw: raw.encode("utf-8", "surrogatepass"))

registry = ContractRegistry()


@event("lifted", service="agent", version="v3", key="key", registry=registry)
class Lifted(msgspec.Struct, frozen=True):
    """The third version of an event whose first had its number as a text."""

    key: str
    number: int
    more: dict[str, Any] | None = None


@upcasts("lifted", from_version="v1", to_version="v2", registry=registry)
def number_of_v1(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "number": int(payload["number"])}


@upcasts("lifted", from_version="v2", to_version="v3", registry=registry)
def key_of_v2(payload: dict[str, Any]) -> dict[str, Any]:
    return {"key": payload["name"].strip(), **payload}


@contextmanager
def soon(*, within_s: float = 2.0) -> Iterator[None]:
    """Fail when the block takes much longer than decoding a few kilobytes may."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < within_s


def envelope_of(message: Message) -> Envelope:
    return Envelope(
        event_id=message.event_id,
        event_type=message.event_type,
        event_version=message.event_version,
        aggregate_id=message.aggregate_id,
        payload=message.payload,
    )


# --- messages ----------------------------------------------------------------------------------------------------


@fuzzing(300)
@given(any_bytes | payloads.flatmap(lambda payload: fuzz.nested(fuzz.document(MESSAGE), "payload", payload)))
def test_record_is_a_message_that_comes_back_or_an_envelope_error(raw: bytes) -> None:
    with soon():
        try:
            found = decode_message(raw)
        except EnvelopeError:
            return
        again = encode_message(envelope_of(found), outbox_id=found.outbox_id, service=found.service_name)
        assert decode_message(again) == found
    assert 0 < found.outbox_id < 2**63


@fuzzing(100)
@given(payloads.flatmap(lambda payload: fuzz.nested(fuzz.document(MESSAGE), "payload", payload)), fuzz.plain_texts)
def test_headers_of_whatever_was_read_are_bytes(raw: bytes, traceparent: str) -> None:
    try:
        found = decode_message(raw)
    except EnvelopeError:
        return
    headers = headers_of(envelope_of(found), service=found.service_name, installation="i", traceparent=traceparent)
    for name, value in headers:
        assert name.isascii()
        assert isinstance(value, bytes)


# --- payload columns ---------------------------------------------------------------------------------------------


@fuzzing(300)
@given(
    any_bytes | payloads.flatmap(lambda payload: fuzz.nested(fuzz.document(ENVELOPE), "payload", payload)),
    st.sampled_from(("strict", "surrogateescape", "replace", "as it is")),
)
def test_column_is_an_envelope_that_comes_back_or_an_envelope_error(raw: bytes, errors: str) -> None:
    column: bytes | str = raw
    if errors != "as it is":
        column = raw.decode("utf-8", "replace" if errors == "strict" else errors)
    with soon():
        try:
            found = decode_envelope(column, outbox_id=7, event_type="a.b")
        except EnvelopeError:
            return
        assert decode_envelope(encode_envelope(found), outbox_id=7, event_type="a.b") == found
    assert (found.event_type, bool(found.event_id), bool(found.event_version)) == ("a.b", True, True)


# --- payloads ----------------------------------------------------------------------------------------------------


def decoded(event_type: str, raw: bytes, *, version: str) -> Any:
    """Return the payload, None when the library refuses it."""
    with soon():
        try:
            return contracts.get(event_type).decode(raw, version=version)
        except PayloadError:
            return None


@every_event
@fuzzing(120)
@given(data=st.data())
def test_payload_is_a_value_that_comes_back_or_a_payload_error(event_type: str, data: st.DataObject) -> None:
    contract = contracts.get(event_type)
    members = fuzz.document(PAYLOADS[event_type])
    similar = fuzz.similar(members).map(str.encode)
    raw = data.draw(st.one_of(similar, similar, fuzz.mutants(members), any_bytes))
    version = data.draw(st.sampled_from([contract.version, *contract.upcasters]))

    found = decoded(event_type, raw, version=version)

    if found is not None:
        assert contract.decode(contract.encode(found), version=contract.version) == found
        assert decoded(event_type, msgspec.json.encode(found), version=contract.version) == found


@every_event
@fuzzing(20)
@given(raw=any_bytes, version=fuzz.texts)
def test_payload_of_any_other_version_is_refused_with_the_known_ones(event_type: str, raw: bytes, version: str) -> None:
    contract = contracts.get(event_type)
    if version in {contract.version, *contract.upcasters}:
        return
    with pytest.raises(UnknownVersionError, match=contract.version):
        contract.decode(raw, version=version)


@fuzzing(200)
@given(
    any_bytes | fuzz.mutants([("name", '"k"'), ("number", '"7"'), ("more", '{"a": 1}')]),
    st.sampled_from(("v1", "v2", "v3")),
)
def test_older_version_is_lifted_or_a_payload_error(raw: bytes, version: str) -> None:
    contract = registry.get("lifted")
    with soon():
        try:
            found = contract.decode(raw, version=version)
        except PayloadError:
            return
        assert contract.decode(contract.encode(found), version="v3") == found


@every_event
@pytest.mark.parametrize("character", [" ", "\\", "\u3000", "/", "🎉", "."])
def test_long_texts_are_judged_in_no_time(event_type: str, character: str) -> None:
    contract = contracts.get(event_type)
    long = f"a{character * 1_000_000}"
    for name, value in PAYLOADS[event_type].items():
        if isinstance(value, str):
            with soon():
                decoded(event_type, msgspec.json.encode(PAYLOADS[event_type] | {name: long}), version=contract.version)


# --- what the admin shows of them ----------------------------------------------------------------------------------


@fuzzing(200)
@given(
    any_bytes | payloads.flatmap(lambda payload: fuzz.nested(fuzz.document(ENVELOPE), "payload", payload)),
    st.integers(1, SHOWN_CHARACTERS),
    st.booleans(),
)
def test_whatever_came_can_be_shown(raw: bytes, limit: int, is_whole: bool) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    with soon():
        shown = [shown_json(text, limit=limit, is_whole=is_whole), shown_bytes(raw, limit=limit)]
    for each in shown:
        each.text.encode()
        assert visible(each.text) == each.text
