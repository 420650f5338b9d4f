"""Batches that other clients compressed: decompressed up to a limit, by every codec and in every message format."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaProducer, TopicPartition, codec
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32

from outbox.brokers.kafka import KafkaBroker, codecs
from outbox.brokers.kafka import unreadable as kafka_unreadable
from outbox.brokers.kafka.group import _incoming
from outbox.brokers.kafka.poll import PollFullError, PollRoom
from outbox.brokers.kafka.producer import BATCH_BYTES
from outbox.brokers.kafka.records import FetchedRecords
from outbox.brokers.kafka.unreadable import UNREADABLE
from outbox.consumer.intake import decode_records
from outbox.exceptions import ConfigurationError
from tests.unit.test_kafka_records import batch_of

MIB = 1024 * 1024
PLACE = TopicPartition("topic", 0)
PACKERS: dict[int, Callable[[bytes], bytes]] = {
    1: codec.gzip_encode,
    2: codec.snappy_encode,
    3: codec.lz4_encode,
    4: codec.zstd_encode,
}
every_codec = pytest.mark.parametrize("number", PACKERS, ids=codecs.NAMES.get)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower the limit, which tests need not fill then."""
    monkeypatch.setattr(codecs, "MAX_BATCH_BYTES", 2 * MIB)
    return 2 * MIB


def records_of(raw: bytes, room: int = 100 * MIB, first: int = 0) -> FetchedRecords:
    return FetchedRecords(first, PLACE, MemoryRecords(raw), room=PollRoom(room))


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- every codec -----------------------------------------------------------------------------------------------------


@every_codec
@given(data=st.binary(min_size=1, max_size=300), times=st.sampled_from([1, 3, 700, 9_000]))
def test_what_was_compressed_comes_out_as_it_was(number: int, data: bytes, times: int) -> None:
    packed = PACKERS[number](data * times)
    assert codecs.decompress(number, memoryview(packed)) == data * times


@every_codec
def test_limit_is_met_to_the_byte(number: int) -> None:
    packed = memoryview(PACKERS[number](bytes(3 * MIB)))
    assert len(codecs.decompress(number, packed, limit=3 * MIB)) == 3 * MIB
    with pytest.raises(codecs.BatchTooLargeError) as refused:
        codecs.decompress(number, packed, limit=3 * MIB - 1)
    name = codecs.NAMES[number]
    assert str(refused.value) == f"{len(packed):,} bytes of {name} decompress to more than the limit of 3,145,727 bytes"


@every_codec
def test_batch_above_the_limit_takes_no_more_memory_than_the_limit(number: int) -> None:
    """What is decompressed is thirty times as much. Libraries may hold once what they were asked for."""
    packed = memoryview(PACKERS[number](bytes(60 * MIB)))

    def read() -> None:
        with pytest.raises(codecs.BatchTooLargeError):
            codecs.decompress(number, packed, limit=2 * MIB)

    assert peak_bytes(read) < 2 * MIB + 5 * codecs._PIECE_BYTES + len(packed)


def test_plain_block_of_snappy_is_read_and_bounded_too() -> None:
    packed = memoryview(codec.snappy_encode(bytes(3 * MIB), xerial_compatible=False))
    assert codecs.decompress(2, packed) == bytes(3 * MIB)
    with pytest.raises(codecs.BatchTooLargeError):
        codecs.decompress(2, packed, limit=3 * MIB - 1)


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"\xff\xff\xff\xff\x0f", id="block that says 4 GiB"),
        pytest.param(b"\x82SNAPPY\0" + bytes(8) + b"\0\0\0\x05\xff\xff\xff\xff\x0f", id="framed block that says 4 GiB"),
    ],
)
def test_length_that_snappy_says_is_not_believed(packed: bytes) -> None:
    with pytest.raises(codecs.BatchTooLargeError):
        codecs.decompress(2, memoryview(packed))


@pytest.mark.parametrize("size", [-4, 0, 1 << 30, -(1 << 31)])
def test_block_of_snappy_whose_size_cannot_be_ends_the_batch(size: int) -> None:
    """The library's own reader goes back by a negative size, and on for ever."""
    packed = b"\x82SNAPPY\0" + bytes(8) + struct.pack(">i", size) + b"\x01\x00a"
    with pytest.raises(ValueError, match=f"a block of snappy has {size} bytes"):
        codecs.decompress(2, memoryview(packed))


def test_other_libraries_of_lz4_know_no_limit_and_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "lz4", None)
    monkeypatch.setattr(codec, "lz4f", codec)
    assert codec.has_lz4()
    with pytest.raises(codecs.MissingLibraryError, match=r"pip install 'kafka-python\[lz4\]'"):
        codecs.decompress(3, memoryview(b""))


# --- batches ---------------------------------------------------------------------------------------------------------


@every_codec
def test_batch_above_the_limit_is_one_record_that_says_so(number: int, limit: int) -> None:
    raw = batch_of(bytes(limit), compression=number)
    after = struct.pack(">q", 1_001) + batch_of(b"after", compression=number)[8:]

    [stand_in, behind] = records_of(raw + after).take()

    assert (stand_in.offset, stand_in.key, stand_in.value) == (1_000, None, raw)
    [(name, said)] = stand_in.headers
    assert name == UNREADABLE
    assert said.startswith(b"offsets 1000 to 1000 cannot be read: BatchTooLargeError: ")
    assert said.endswith(
        f" bytes of {codecs.NAMES[number]} decompress to more than the limit of {limit:,} bytes".encode()
    )
    assert (behind.offset, behind.value) == (1_001, b"after")
    [rejection] = decode_records([_incoming(stand_in)], service="agent").rejected
    assert rejection.reason == said.decode()


def test_what_was_decompressed_is_not_held_while_its_stand_in_is_at_work(limit: int) -> None:
    raw = batch_of(bytes(limit), compression=1)
    records = records_of(raw)
    tracemalloc.start()
    try:
        [_] = records.take(1)
        assert tracemalloc.get_traced_memory()[0] < limit // 4
    finally:
        tracemalloc.stop()


def test_batch_of_very_many_records_is_taken_apart_as_they_are_asked_for() -> None:
    """What takes 1 MB as a batch takes 30 MB as objects."""
    count = 100_000
    builder = DefaultRecordBatchBuilder(2, 1, False, -1, -1, -1, 1 << 30)
    for number in range(count):
        assert builder.append(number, 0, None, None, []) is not None
    assert builder.size() > count * 7
    records = records_of(bytes(builder.build()))
    taken: list[Any] = []

    def take(many: int) -> int:
        return peak_bytes(lambda: taken.extend(records.take(many)))

    assert take(500) < 4 * MIB
    assert take(500) < MIB
    assert [record.offset for record in taken] == list(range(1_000))
    assert sum(1 for _ in records.record_iterator) == count - 1_000


# --- what one poll gives ---------------------------------------------------------------------------------------------


def test_poll_ends_when_it_has_no_more_room_and_the_next_one_goes_on() -> None:
    values = [bytes([number]) * 1_000 for number in range(10)]
    records = records_of(batch_of(*values, compression=1), room=2_500)

    taken = [records.take(500)]
    while len(taken[-1]) < 10 and records:
        with pytest.raises(PollFullError):
            records.take(500)
        records._room.left = 2_500
        taken.append(records.take(500))

    assert [len(each) for each in taken] == [3, 3, 3, 1]
    assert [record.value for each in taken for record in each] == values


# --- old formats -----------------------------------------------------------------------------------------------------

Pairs = list[tuple[bytes | None, bytes | None]]


def message_set(magic: int, pairs: Pairs, compression: int = 0, last_offset: int = 57) -> bytes:
    """Return a message, or several compressed together, as a broker before 0.11 stored them."""
    builder = LegacyRecordBatchBuilder(magic, compression, 1 << 20)
    first = 0 if magic else last_offset - len(pairs) + 1
    for number, (key, value) in enumerate(pairs, first):
        assert builder.append(number, 1_700_000_000_000 + number, key, value) is not None
    raw = builder.build()
    struct.pack_into(">q", raw, 0, last_offset)
    return bytes(raw)


old_formats = pytest.mark.parametrize(
    ("magic", "number"), [(magic, number) for magic in (0, 1) for number in (0, 1, 2, 3) if magic or number != 3]
)
nullable = st.none() | st.binary(max_size=200)


@old_formats
@given(pairs=st.lists(st.tuples(nullable, nullable), min_size=1, max_size=5))
def test_old_records_are_what_the_client_reads(magic: int, number: int, pairs: Pairs) -> None:
    raw = message_set(magic, pairs if number else pairs[:1], number)
    ours, theirs = (
        [
            (each.offset, each.timestamp, each.key, each.value, each.headers)
            for each in kind(0, PLACE, MemoryRecords(raw)).take()
        ]
        for kind in (partial(FetchedRecords, room=PollRoom(MIB)), Fetcher.PartitionRecords)
    )
    assert ours == [(*rest, []) for *rest, _ in theirs]


@pytest.mark.parametrize(("magic", "number"), [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)])
def test_old_set_above_the_limit_is_one_record_that_says_so(magic: int, number: int, limit: int) -> None:
    raw = compressed(magic, number, bytes(limit + 1))
    [stand_in] = records_of(raw).take()
    assert (stand_in.offset, stand_in.value) == (57, raw)
    [(name, said)] = stand_in.headers
    assert name == UNREADABLE
    assert said.startswith(b"offsets up to 57 cannot be read: BatchTooLargeError: ")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack(">qi", 0, -12) + bytes(20), id="size that leads back"),
        pytest.param(struct.pack(">qi", 0, 0) + bytes(20), id="no size"),
        pytest.param(struct.pack(">qi", 0, 1 << 30) + bytes(20), id="size beyond the end"),
        pytest.param(bytes(5), id="less than a head"),
        pytest.param(message_set(1, [(b"k", b"v")])[:-1] + b"x", id="wrong checksum"),
        pytest.param(message_set(1, [(b"k", b"v" * 300)], 1), id="compressed twice"),
        pytest.param(message_set(1, [(b"k", b"v")], last_offset=60), id="offset behind its own"),
    ],
)
def test_old_set_that_cannot_be_taken_apart_ends_at_its_last_offset(body: bytes) -> None:
    """The client fetches an empty one for ever, follows a size that leads back for ever, and gives up at the others."""
    raw = compressed(1, 1, body)
    found = records_of(raw).take()
    assert [record.offset for record in found] == [57]


def test_lz4_of_format_0_is_not_read_and_says_so() -> None:
    [stand_in] = records_of(compressed(0, 3, b"any")).take()
    assert "lz4 in message format 0 is not read" in stand_in.headers[0][1].decode()


def test_old_message_with_a_wrong_checksum_is_believed_at_the_third_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_unreadable, "_damaged", type(kafka_unreadable._damaged)())
    raw = bytearray(message_set(1, [(b"key", b"value")]))
    raw[-1] ^= 0xFF
    for _ in range(2):
        with pytest.raises(Exception, match="failed crc check"):
            records_of(bytes(raw)).take()
    [stand_in] = records_of(bytes(raw)).take()
    assert "its checksum is wrong" in stand_in.headers[0][1].decode()


def compressed(magic: int, number: int, body: bytes) -> bytes:
    """Return an envelope at offset 57 around ``body``."""
    value = PACKERS[number](body)
    checked = struct.pack(">bb", magic, number) + (struct.pack(">q", 0) if magic else b"")
    checked += struct.pack(">ii", -1, len(value)) + value
    return struct.pack(">qiI", 57, len(checked) + 4, calc_crc32(checked)) + checked


# --- our own batches -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=20), st.integers(0, 60_000), st.integers(1_000, 40_000))
def test_no_batch_of_ours_is_larger_than_its_options_say(sizes: list[int], batch_size: int, max_request: int) -> None:
    """Whatever comes of it by compression: sizes are counted before."""
    builder = DefaultRecordBatchBuilder(2, 1, False, -1, -1, -1, batch_size)
    taken = 0
    for size in sizes:
        if builder.estimate_size_in_bytes(b"key", bytes(size), []) > max_request:
            continue  # the client refuses it
        if builder.append(taken, 0, b"key", bytes(size), []) is None:
            break
        taken += 1
    assert builder.size() <= max(batch_size, max_request, builder.HEADER_STRUCT.size)


@pytest.mark.parametrize("name", ["batch_size", "max_request_size"])
@pytest.mark.parametrize("section", ["common", "producer"])
def test_options_by_which_a_batch_of_ours_could_not_be_read_are_refused(section: str, name: str) -> None:
    def broker(size: int) -> None:
        KafkaBroker(bootstrap_servers="127.0.0.1:9092", **{section: {name: size}}).close()

    broker(codecs.MAX_BATCH_BYTES)
    with pytest.raises(ConfigurationError, match=f"'producer': '{name}' is 67,108,865, and consumers .* lower it"):
        broker(codecs.MAX_BATCH_BYTES + 1)


def test_limit_is_far_above_what_our_producer_writes_by_default() -> None:
    largest = max(BATCH_BYTES, KafkaProducer.DEFAULT_CONFIG["max_request_size"])
    assert 16 * largest <= codecs.MAX_BATCH_BYTES
