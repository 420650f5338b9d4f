"""Batches that cannot be read as they should: each record of them is read, or within one that stands for the rest."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import codec
from kafka.errors import UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c

from outbox.brokers import _kafka_codecs
from outbox.brokers._kafka_records import UNREADABLE, read_whatever_lies_there

HEAD = DefaultRecordBatch.HEADER_STRUCT.size
BASE = 1_000
CODECS = {"none": 0, **{name: number for number, name in _kafka_codecs.NAMES.items()}}


@pytest.fixture(autouse=True)
def _installed() -> None:
    read_whatever_lies_there()


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


def read(raw: bytes) -> list[Any]:
    """Read a batch as the fetcher does; return the records."""
    [batch] = list(MemoryRecords(raw))
    assert batch.validate_crc()
    return list(batch)


@pytest.mark.parametrize("compression", CODECS.values(), ids=CODECS.keys())
def test_whole_batches_are_read_as_they_are(compression: int) -> None:
    values = [b"a" * 500, b"", b"c" * 500]
    found = read(batch_of(*values, compression=compression))
    assert [(record.offset, record.value) for record in found] == list(enumerate(values, BASE))


@pytest.mark.parametrize("compression", [1, 2, 3, 4], ids=_kafka_codecs.NAMES.get)
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
    [first] = list(MemoryRecords(bytes(raw)))
    assert not first.validate_crc()
    [second] = list(MemoryRecords(bytes(raw)))
    assert not second.validate_crc()
    [third] = list(MemoryRecords(bytes(raw)))
    assert third.validate_crc()
    [stand_in] = list(third)
    assert stand_in.offset == BASE + 1
    assert b"its checksum is wrong" in stand_in.headers[0][1]
    other = bytes(batch_of(b"x"))
    assert [record.value for record in read(other)] == [b"x"]
