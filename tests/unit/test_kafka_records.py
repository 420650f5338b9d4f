"""Batches that cannot be read as they should: each record of them is read, or within one that stands for the rest."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import TopicPartition, codec
from kafka.consumer.fetcher import Fetcher
from kafka.errors import UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c, decode_varint, encode_varint

from outbox.brokers.base import IncomingRecord
from outbox.brokers.kafka import codecs as kafka_codecs
from outbox.brokers.kafka import records as kafka_records
from outbox.brokers.kafka.group import _incoming
from outbox.brokers.kafka.poll import PollRoom
from outbox.brokers.kafka.records import UNREADABLE_HEADERS, FetchedBatches, FetchedRecords, PackedHeaders
from outbox.brokers.kafka.unreadable import UNREADABLE

HEAD = DefaultRecordBatch.HEADER_STRUCT.size
BASE = 1_000
CODECS = {"none": 0, **{name: number for number, name in kafka_codecs.NAMES.items()}}
Headers = tuple[tuple[str, bytes], ...]


def batch_of(*values: bytes, compression: int = 0, change: Callable[[bytearray], object] | None = None) -> bytes:
    """Return a batch at offset ``BASE``, changed behind its head and with a right checksum after it."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1 << 20)
    for number, value in enumerate(values):
        assert builder.append(number, 0, b"key", value, [("name", b"header")]) is not None
    raw = bytearray(builder.build())
    if change is not None:
        body = raw[HEAD:]
        change(body)
        raw[HEAD:] = body
    struct.pack_into(">qi", raw, 0, BASE, len(raw) - 12)
    seal(raw)
    return bytes(raw)


def seal(raw: bytearray) -> None:
    crc = calc_crc32c(memoryview(raw)[DefaultRecordBatch.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", raw, DefaultRecordBatch.CRC_OFFSET, crc)


def fetched(raw: bytes) -> Any:
    """Return a batch as our consumers have it."""
    return FetchedBatches(MemoryRecords(raw)).next_batch()


def read(raw: bytes) -> list[Any]:
    """Read a batch as the fetcher does; return the records."""
    batch = fetched(raw)
    assert batch.validate_crc()
    return list(batch)


@pytest.mark.parametrize("compression", CODECS.values(), ids=CODECS.keys())
def test_whole_batches_are_read_as_they_are(compression: int) -> None:
    values = [b"a" * 500, b"", b"c" * 500]
    found = read(batch_of(*values, compression=compression))
    assert [(record.offset, record.value) for record in found] == list(enumerate(values, BASE))


@pytest.mark.parametrize("compression", [1, 2, 3, 4], ids=kafka_codecs.NAMES.get)
@given(data=st.data())
def test_any_damage_ends_at_the_last_offset(compression: int, data: st.DataObject) -> None:
    """Whatever the libraries raise at it."""

    def change(body: bytearray) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(body)))
            body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))

    check_accounted_for(batch_of(b"a" * 300, b"b" * 300, b"c" * 300, compression=compression, change=change))


@given(st.integers(0, 200), st.binary(max_size=4))
@example(4, b"\x7e")
def test_any_damage_of_plain_records_ends_at_the_last_offset(at: int, put: bytes) -> None:
    def change(body: bytearray) -> None:
        body[at : at + len(put)] = put

    check_accounted_for(batch_of(b"a" * 20, b"b" * 20, b"c" * 20, change=change))


def check_accounted_for(raw: bytes) -> None:
    found = read(raw)
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    assert offsets[0] >= BASE
    assert offsets[-1] <= BASE + 2
    *_, last = found
    if last.headers and last.headers[0][0] == UNREADABLE:
        assert last.offset == BASE + 2
        assert last.value == raw
        assert b"cannot be read: " in last.headers[0][1]


@pytest.mark.parametrize("number", [5, 6, 7])
def test_unknown_codec_is_kept_with_its_reason(number: int) -> None:
    raw = bytearray(batch_of(b"a", b"b"))
    struct.pack_into(">h", raw, DefaultRecordBatch.ATTRIBUTES_OFFSET, number)
    seal(raw)

    [stand_in] = read(bytes(raw))

    assert (stand_in.offset, stand_in.key, stand_in.value) == (BASE + 1, None, bytes(raw))
    [(name, said)] = stand_in.headers
    assert name == UNREADABLE
    assert said.startswith(f"offsets {BASE} to {BASE + 1} cannot be read: ".encode())
    assert b"compression type" in said


@pytest.mark.parametrize(("attribute", "name"), [("snappy", "snappy"), ("lz4", "lz4"), ("zstd", "zstd")])
def test_missing_library_is_no_reason_to_pass_over_a_batch(
    monkeypatch: pytest.MonkeyPatch, attribute: str, name: str
) -> None:
    raw = batch_of(b"a" * 500, compression=CODECS[name])
    monkeypatch.setattr(codec, attribute, None)
    with pytest.raises(UnsupportedCodecError, match=rf"{name}, whose library.*kafka-python\[{name}\]"):
        read(raw)
    monkeypatch.undo()
    assert [record.value for record in read(raw)] == [b"a" * 500]


def test_wrong_checksum_is_believed_at_the_third_time() -> None:
    raw = bytearray(batch_of(b"a", b"b"))
    raw[-1] ^= 0xFF
    first, second, third = (fetched(bytes(raw)) for _ in range(3))
    assert [batch.validate_crc() for batch in (first, second, third)] == [False, False, True]
    [stand_in] = list(third)
    assert stand_in.offset == BASE + 1
    assert b"its checksum is wrong" in stand_in.headers[0][1]
    other = bytes(batch_of(b"x"))
    assert [record.value for record in read(other)] == [b"x"]


# --- headers ---------------------------------------------------------------------------------------------------------


def with_headers(
    *headers: tuple[str, bytes | None], key: bytes | None = b"key", value: bytes | None = b"value"
) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    assert builder.append(0, 1_700_000_000_000, key, value, list(headers)) is not None
    return bytes(builder.build())


texts = st.text(max_size=80)
nullable = st.none() | st.binary(max_size=300)


@given(st.lists(st.tuples(texts, nullable), max_size=12), nullable, nullable)
def test_records_are_what_the_client_reads(
    headers: list[tuple[str, bytes | None]], key: bytes | None, value: bytes | None
) -> None:
    raw = with_headers(*headers, key=key, value=value)
    [strict] = DefaultRecordBatch(raw)

    [record] = read(raw)

    assert record.headers() == tuple((name, content or b"") for name, content in strict.headers)
    for part in ("size_in_bytes", "offset", "timestamp", "timestamp_type", "key", "value"):
        assert getattr(record, part) == getattr(strict, part), part


@pytest.mark.parametrize(
    ("packed", "count", "read"),
    [
        pytest.param(b"\x04na\x02v", 1, (("na", b"v"),), id="whole"),
        pytest.param(b"\x04n\xff\x02v", 1, (("n\\xff", b"v"),), id="name that is no UTF-8"),
        pytest.param(b"\x02a\x01\x02b\x00", 2, (("a", b""), ("b", b"")), id="no value and an empty one"),
        pytest.param(b"\x02a\x00\x02b\x7ev", 2, (("a", b""), (UNREADABLE_HEADERS, b"\x02b\x7ev")), id="cut off"),
        pytest.param(b"\x02a\x00", 2, (("a", b""),), id="fewer than were announced"),
        pytest.param(b"\x02a\x00\x02b\x00", 1, (("a", b""), (UNREADABLE_HEADERS, b"\x02b\x00")), id="more"),
        pytest.param(b"\xff" * 11, 1, ((UNREADABLE_HEADERS, b"\xff" * 11),), id="length that is no number"),
    ],
)
def test_headers_are_read_as_far_as_they_can_be(packed: bytes, count: int, read: Headers) -> None:
    assert PackedHeaders(packed, count)() == read


@given(st.binary(max_size=60), st.integers(0, 20))
def test_no_header_ever_raises(packed: bytes, count: int) -> None:
    headers = PackedHeaders(packed, count)
    found = headers()

    left = dict(found).get(UNREADABLE_HEADERS, b"")
    assert len(found) <= count + 1
    assert packed.endswith(left)
    for name, _ in found:
        headers.get(name)


@given(st.lists(st.tuples(texts, st.binary(max_size=80)), max_size=6), st.binary(max_size=20))
def test_what_lies_behind_the_headers_is_kept(headers: list[tuple[str, bytes]], behind: bytes) -> None:
    packed = bytearray()
    for part in (part for name, value in headers for part in (name.encode(), value)):
        encode_varint(len(part), packed.append)
        packed += part

    reader = PackedHeaders(bytes(packed) + behind, len(headers))

    assert reader() == (*headers, *([(UNREADABLE_HEADERS, behind)] if behind else []))
    plain = IncomingRecord("t", 0, 0, None, None, tuple(headers))
    packed_record = IncomingRecord("t", 0, 0, None, None, reader)
    for name in [*(name for name, _ in headers), "no such name", ""]:
        assert packed_record.header(name) == plain.header(name)
    assert plain.headers == tuple(headers)


def test_batch_that_is_split_to_be_sent_again_keeps_its_headers() -> None:
    """The producer reads it too: what is too large for the broker goes in two."""
    [batch] = MemoryRecords(with_headers(("name", None), ("name", b"value")))
    [record] = batch
    assert record.headers == [("name", None), ("name", b"value")]


def test_headers_that_the_client_read_come_as_ours_do() -> None:
    """Where it reads alone."""
    raw = with_headers(("name", None), ("name", b"value"))
    place = TopicPartition("topic", 0)
    [ours], [theirs] = (
        [_incoming(record) for record in kind(0, place, MemoryRecords(raw)).take()]
        for kind in (partial(FetchedRecords, room=PollRoom(1)), Fetcher.PartitionRecords)
    )
    assert ours.headers == theirs.headers == (("name", b""), ("name", b"value"))
    assert (ours.place, ours.key, ours.value) == (theirs.place, theirs.key, theirs.value)


def test_headers_are_read_by_who_asks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of what reading a record takes."""
    places: list[int] = []

    def counted(buffer: bytes, at: int) -> tuple[int, int]:
        places.append(at)
        return decode_varint(buffer, at)

    monkeypatch.setattr(kafka_records, "decode_varint", counted)
    raw = with_headers(*[(f"name-{number}", b"value") for number in range(10)])
    [record] = read(raw)
    assert len(places) == 6  # length, moment, offset, key, value, how many headers
    assert not record.headers
    assert len(record.headers()) == 10
    assert len(places) == 26
