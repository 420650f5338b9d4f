"""Records that skip ``KafkaProducer.send``: the batch, the refusals and the wake-ups are those of ``send``."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer
from kafka import partitioner as kafka_partitioner
from kafka.cluster import ClusterMetadata
from kafka.errors import IllegalStateError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.partitioner import DefaultPartitioner
from kafka.producer.sender import Sender
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from outbox.brokers.base import OutgoingRecord
from outbox.brokers.kafka import encoding
from outbox.brokers.kafka.producer_link import Entry, Link

TOPIC = "outbox.toys"
MS = 1_700_000_000_000

names = st.text(max_size=12) | st.sampled_from(["", "content-type", "ключ", "ключ" * 40])
headers = st.lists(st.tuples(names, st.binary(max_size=200)), max_size=12) | st.lists(
    st.tuples(names, st.just(b"x")), min_size=60, max_size=70
)
keys = st.binary(max_size=40) | st.sampled_from([b"", b"k" * 63, b"k" * 64, b"k" * 9_000])
values = st.binary(max_size=100) | st.sampled_from(
    [b"", b"v" * 63, b"v" * 64, b"v" * 8_191, b"v" * 8_192, b"v" * 70_000]
)
timestamps = st.integers(0, 1 << 41) | st.integers(MS - 100, MS + 100) | st.sampled_from([0, -1, -(1 << 40), 1 << 62])
offsets = st.integers(0, 70_000) | st.sampled_from([63, 64, 8_191, 8_192, (1 << 31) - 1])
batch_bytes = st.integers(0, 2_000) | st.sampled_from([16_384, 1 << 20])


class Network:
    """What a ``KafkaProducer`` needs of its network to take records; nothing leaves it."""

    def __init__(self, partitions: int, version: tuple[int, ...]) -> None:
        self.wakeups = 0
        self.cluster = ClusterMetadata()
        self.cluster._partitions = {TOPIC: {number: SimpleNamespace(leader_id=1) for number in range(partitions)}}
        self._manager = SimpleNamespace(cluster=self.cluster, broker_version_data=object(), broker_version=version)

    def wakeup(self) -> None:
        self.wakeups += 1


@contextmanager
def producer(*, partitions: int = 1, version: tuple[int, ...] = (4, 0), **options: Any) -> Iterator[Any]:
    """Give a client that takes records and never sends them."""
    network = Network(partitions, version)
    defaults = {"metrics_enabled": False, "kafka_client": lambda **_: network, "max_block_ms": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sender, "start", lambda _: None)
        client = KafkaProducer(**defaults, **options)
    client.network = network
    try:
        yield client
    finally:
        client._unregister_cleanup()
        client._closed = True  # or its end would wait for the records to be sent


def write(client: Any, **record: Any) -> Any:
    writer = encoding.RecordWriter(client)
    with writer.batch():
        return writer.write(TOPIC, **record)


def send(client: Any, *, headers: Any, **record: Any) -> Any:
    return KafkaProducer.send(client, TOPIC, headers=list(headers), **record)


def outcome(call: Callable[[], Any]) -> Any:
    """Return what came of a call, in a form to compare."""
    try:
        future = call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return type(error), str(error)
    batch_index, timestamp, checksum, key_size, value_size, _ = future.args
    return future._produce_future.topic_partition, batch_index, timestamp, checksum, key_size, value_size


def held(client: Any) -> dict[Any, list[bytes]]:
    """Return the batches of a client as they would be sent."""
    found: dict[Any, list[bytes]] = {}
    for partition, batches in client._accumulator._batches.items():
        for batch in batches:
            batch.records.close()
        found[partition] = [bytes(batch.records.buffer()) for batch in batches]
    return {partition: batches for partition, batches in found.items() if batches}


# --- the batch -------------------------------------------------------------------------------------------------------


def added(builder: Any, offset: int, timestamp: int, record: tuple[Any, Any, Any]) -> Any:
    metadata = builder.append(offset, timestamp, *record)
    return None if metadata is None else (metadata.offset, metadata.size, metadata.timestamp, metadata.crc)


@given(
    st.lists(st.tuples(offsets, timestamps, keys, values, headers, st.booleans()), min_size=1, max_size=8), batch_bytes
)
@example([(0, MS, b"k", b"v" * 70_000, [("n", b"")], False), (1, MS - 5, b"", b"", [], True)], 1 << 20)
def test_batch_is_the_same_byte_for_byte(
    records: list[tuple[int, int, bytes, bytes, list[tuple[str, bytes]], bool]], size: int
) -> None:
    ours, theirs = (kind(2, 0, 0, -1, -1, -1, size) for kind in (encoding.BatchBuilder, DefaultRecordBatchBuilder))
    for offset, timestamp, key, value, named, as_given in records:
        encoded = named if as_given else encoding.encode(key, value, tuple(named))
        expected = theirs.append(offset, timestamp, key, value, named)
        assert added(ours, offset, timestamp, (key, value, encoded)) == (
            None if expected is None else (expected.offset, expected.size, expected.timestamp, expected.crc)
        )
        assert ours.size() == theirs.size()

    assert bytes(ours.build()) == bytes(theirs.build())


def test_full_batch_takes_the_record_that_fills_it_and_no_byte_more() -> None:
    first, second = (encoding.encode(b"k", b"v" * 100, ()) for _ in range(2))
    roomy = encoding.BatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    assert roomy.append(0, MS, b"", b"", first) is not None
    assert roomy.append(1, MS, b"", b"", second) is not None
    for size, is_taken in ((roomy.size(), True), (roomy.size() - 1, False)):
        builder = encoding.BatchBuilder(2, 0, 0, -1, -1, -1, size)
        assert builder.append(0, MS, b"", b"", first) is not None
        assert (builder.append(1, MS, b"", b"", second) is not None) is is_taken


def test_record_without_a_time_gets_that_of_the_process() -> None:
    builder = encoding.BatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    before = int(time.time() * 1000)
    metadata = builder.append(0, None, b"k", b"v", encoding.encode(b"k", b"v", ()))
    assert before <= metadata.timestamp <= int(time.time() * 1000)


@given(keys, values, headers)
def test_batch_that_knows_nothing_of_encoded_records_takes_their_headers(
    key: bytes, value: bytes, named: list[tuple[str, bytes]]
) -> None:
    """The first record of each batch goes into one, and any in the moment before it is ours."""
    ours, theirs = (DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20) for _ in range(2))
    ours.append(0, MS, key, value, encoding.encode(key, value, tuple(named)))
    theirs.append(0, MS, key, value, named)
    assert bytes(ours.build()) == bytes(theirs.build())


def test_batches_of_our_client_are_ours_and_no_other() -> None:
    with producer() as ours, producer() as theirs:
        for _ in range(2):
            write(ours, **call())
            send(theirs, **call())
        kinds = [type(client._accumulator._batches[TOPIC, 0][-1].records._builder) for client in (ours, theirs)]
    assert kinds == [encoding.BatchBuilder, DefaultRecordBatchBuilder]


def test_memory_for_names_and_lengths_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_names", encoding._Names())
    monkeypatch.setattr(encoding, "_varints", encoding._Varints())
    monkeypatch.setattr(encoding, "_pairs", encoding._Pairs())
    for number in range(20_000):
        named = [(f"x-{number}", b"")]
        assert encoding.encode(b"", b"v" * number, tuple(named)).content.endswith(f"x-{number}".encode() + b"\x00")
    assert len(encoding._names) == 1 << 10
    assert len(encoding._varints) <= 1 << 13
    assert len(encoding._pairs) <= 1 << 11
    assert all(len(each) <= 256 for each in encoding._pairs.values())


# --- what send does besides ------------------------------------------------------------------------------------------


class Bytes(bytes):
    """Bytes that ``send`` takes in headers and nowhere else."""


odd_headers = st.sampled_from(
    [
        [["name", b"list"]],
        [("name", "text")],
        [("name", None)],
        [("name", Bytes(b"of a kind"))],
        [("name", bytearray(b"mutable"))],
        [("name", memoryview(b"view"))],
        [(b"name", b"header")],
        [(None, b"header")],
        [(7, b"header")],
        [(["name"], b"header")],
        [("name", b"one", b"more")],
        [("name",)],
        [None],
        ["na"],
        [("\ud800", b"lone surrogate")],
    ]
)
odd_bytes = st.sampled_from(
    [None, "text", 7, bytearray(b"mutable"), memoryview(b"view"), ["list"], Bytes(b"of a kind"), array("b", [1])]
)
odd_times = st.sampled_from([True, 1.5, "now", b"now"])
calls = st.fixed_dictionaries(
    {
        "key": keys | odd_bytes,
        "value": values | odd_bytes,
        "headers": headers | odd_headers,
        "timestamp_ms": timestamps | odd_times,
    }
)


def call(key: Any = b"k", value: Any = b"v", headers: Any = (), timestamp_ms: Any = MS) -> dict[str, Any]:
    return {"key": key, "value": value, "headers": headers, "timestamp_ms": timestamp_ms}


@given(st.lists(calls, min_size=1, max_size=8), batch_bytes, st.sampled_from([500, 9_000, 1 << 20]))
@example([call(), call(headers=[("name", memoryview(b"header"))]), call(headers=[["name", b"header"]])], 1_000, 1 << 20)
@example([call(headers=[("name", b"header")]), call(headers=[("name", memoryview(b"header"))])], 1_000, 1 << 20)
@example([call(headers=[()]), call(headers=[("name",)]), call(headers=[("name", b"a", b"b")])], 1_000, 1 << 20)
@example([call(key=None), call(value=None), call(key=None, value=None), call(key="k"), call(value="v")], 1_000, 1 << 20)
@example([call(key=Bytes(b"k")), call(value=Bytes(b"v")), call(value=array("b", [1]))], 1_000, 1 << 20)
@example([call(value=b"v" * 100)] * 4, 300, 1 << 20)  # the last finds a full batch before its own
@example([call(), call(timestamp_ms=-(1 << 62)), call(timestamp_ms=1.5), call()], 1_000, 1 << 20)
def test_whatever_is_handed_over_send_would_have_done_the_same(
    handed_over: list[dict[str, Any]], size: int, limit: int
) -> None:
    options = {"batch_size": size, "max_request_size": limit}
    with producer(**options) as ours, producer(**options) as theirs:
        for record in handed_over:
            expected = outcome(lambda record=record: send(theirs, **record))
            assert outcome(lambda record=record: write(ours, **record)) == expected
            assert ours.network.wakeups == theirs.network.wakeups
        assert held(ours) == held(theirs)


@given(st.lists(st.tuples(keys, values, headers), min_size=1, max_size=5))
def test_ordinary_record_does_not_go_through_send(records: list[tuple[bytes, bytes, Any]]) -> None:
    with producer() as client:
        client.send = None
        for key, value, named in records:
            write(client, key=key, value=value, headers=tuple(named), timestamp_ms=MS)
            write(client, key=key, value=value, headers=tuple(named), timestamp_ms=None)


@given(keys, values, headers)
def test_oversize_record_is_refused_as_send_refuses_it(
    key: bytes, value: bytes, named: list[tuple[str, bytes]]
) -> None:
    size = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, named)
    record = {"key": key, "value": value, "headers": tuple(named), "timestamp_ms": MS}
    with producer(max_request_size=size) as client:
        write(client, **record)
    with producer(max_request_size=size - 1) as client:
        with pytest.raises(MessageSizeTooLargeError) as theirs:
            send(client, **record)
        with pytest.raises(MessageSizeTooLargeError) as ours:
            write(client, **record)
        assert str(ours.value) == str(theirs.value)
        assert not held(client)


def test_oversize_record_is_refused_and_its_neighbours_are_taken() -> None:
    entries = [
        Entry(OutgoingRecord(number, TOPIC, "k", b"v" * size, (("name", b"header"),)))
        for number, size in enumerate([10, 5_000, 10])
    ]
    with producer(max_request_size=1_000) as client:
        Link(client).hand_over(entries, {})
        assert [bool(entry.refusal) for entry in entries] == [False, True, False]
        assert "MessageSizeTooLargeError" in entries[1].refusal
        assert [entry.future is not None for entry in entries] == [True, False, True]


def test_unknown_topic_is_waited_for_as_send_waits() -> None:
    with producer() as client:
        client.network.cluster._partitions.clear()
        with pytest.raises(KafkaTimeoutError):
            write(client, **call())


def test_closed_client_takes_nothing() -> None:
    with producer() as client:
        client._closed = True
        with pytest.raises(IllegalStateError):
            write(client, **call())
        assert not held(client)


@pytest.mark.filterwarnings("ignore:.*_serializer does not implement:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "options"),
    [
        ((0, 10, 2), {"enable_idempotence": False}),
        ((4, 0), {"value_serializer": lambda value: value}),
        ((4, 0), {"key_serializer": lambda key: key}),
        ((4, 0), {"transactional_id": "outbox"}),
    ],
)
def test_clients_with_more_to_do_are_left_to_send(version: tuple[int, ...], options: dict[str, Any]) -> None:
    with producer(version=version, **options) as client:
        client.send = lambda *_, **__: "sent"
        assert write(client, **call()) == "sent"


def test_threads_that_share_a_client_lose_no_record() -> None:
    numbers = range(300)
    with producer(batch_size=4_000) as client:
        writer = encoding.RecordWriter(client)

        def work(name: str) -> None:
            for number in numbers:
                writer.write(TOPIC, **call(key=name.encode(), value=b"%d" % number, headers=(("name", name.encode()),)))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [batches] = held(client).values()
    found: dict[bytes, list[int]] = {}
    for raw in batches:
        assert all(batch.validate_crc() for batch in MemoryRecords(raw))
        for batch in MemoryRecords(raw):
            for record in batch:
                assert record.headers == [("name", record.key)]
                found.setdefault(record.key, []).append(int(record.value))
    assert found == {name: list(numbers) for name in (b"a", b"b", b"c", b"d")}


# --- the partition ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=70))
@example(b"\xff" * 7)
def test_hash_of_a_key_is_that_of_the_client(key: bytes) -> None:
    assert encoding.murmur2(key) == kafka_partitioner.murmur2(key)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20), st.integers(1, 50))
def test_keys_go_to_the_partitions_of_the_client(names: list[bytes], partitions: int) -> None:
    with producer(partitions=partitions) as ours, producer(partitions=partitions) as theirs:
        for name in names:
            record = call(key=name)
            assert outcome(lambda record=record: write(ours, **record)) == outcome(
                lambda record=record: send(theirs, **record)
            )


def test_new_partitions_are_seen_with_the_next_batch() -> None:
    keys_of_many = [b"%d" % number for number in range(40)]
    with producer(partitions=1) as client:
        writer = encoding.RecordWriter(client)
        with writer.batch():
            for key in keys_of_many:
                writer.write(TOPIC, **call(key=key))
        assert len(held(client)) == 1
        client.network.cluster._partitions = {TOPIC: {number: SimpleNamespace(leader_id=1) for number in range(4)}}
        with writer.batch():
            for key in keys_of_many:
                writer.write(TOPIC, **call(key=key))
        assert len(held(client)) == 4
        assert client.network.wakeups == 2, "once for each batch"


def test_another_partitioner_is_asked() -> None:
    class Last(DefaultPartitioner):  # type: ignore[misc]
        def partition(self, topic: str, *_: Any) -> int:
            return 2

    with producer(partitions=3, partitioner=Last()) as client:
        write(client, **call())
        assert [partition.partition for partition in held(client)] == [2]
