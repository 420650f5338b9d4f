"""Records on a real Kafka that other clients can write and that are hard to read: none holds up its partition."""

from __future__ import annotations

import gzip
import json
import secrets
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, codec
from kafka.record import default_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import encode_varint

from outbox.brokers.base import IncomingRecord, OutgoingRecord
from outbox.brokers.kafka import KafkaBroker
from outbox.brokers.kafka import unreadable as kafka_unreadable
from outbox.brokers.kafka.codecs import MAX_BATCH_BYTES
from outbox.brokers.kafka.unreadable import UNREADABLE
from outbox.brokers.memory import MemoryBroker
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError
from outbox.models import RejectedRecord, service_route
from outbox.workers.build import build_consumer
from tests.services import in_ci, kafka_servers, require

CHECKOUT = Path(__file__).resolve().parents[2]

CODECS = ("gzip", "snappy", "lz4", "zstd")

ODD = [b"odd " * 100, b"", b"x" * 3_000_000]
"""Values that are worth compressing, an empty one, and one that is larger than the blocks of each codec."""

Produce = Callable[..., None]


@pytest.fixture
def servers() -> list[str]:
    require("kafka")
    return str(kafka_servers()).split(",")


@pytest.fixture
def broker(servers: list[str]) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(bootstrap_servers=servers)
    yield broker
    broker.close()


@pytest.fixture
def route(broker: KafkaBroker, servers: list[str]) -> Iterator[ServiceRoute]:
    """Give the route to a topic of its own, of one partition."""
    name = f"strange-{secrets.token_hex(6)}"
    route = ServiceRoute(service="agent", table="none", topic=name, group=name)
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics(
            {name: {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "5000000"}}}
        )
        broker.create_topics([route])
        yield route
    finally:
        admin.delete_topics([name])
        admin.close()


@pytest.fixture
def kcat(servers: list[str], route: ServiceRoute) -> Callable[..., None]:
    """Give a function that writes a record by the client that shares no code with ours."""
    if shutil.which("kcat") is None:
        (pytest.fail if in_ci() else pytest.skip)("kcat is not installed (Debian: apt-get install kcat)")
    command = [b"kcat", b"-P", b"-b", ",".join(servers).encode(), b"-t", route.topic.encode()]
    largest = [b"-X", b"message.max.bytes=5000000"]

    def write(value: bytes, *how: bytes) -> None:
        # Without a delimiter in it, standard input is one record.
        subprocess.run([*command, *largest, *how], input=value, check=True, timeout=30)

    return write


@pytest.fixture
def produce(servers: list[str], route: ServiceRoute) -> Produce:
    """Give a function that writes values by kafka-python in one batch, which is in no way ours."""

    def write(*values: bytes, **options: Any) -> None:
        bounds = {"max_request_size": 5_000_000, "batch_size": 5_000_000, "linger_ms": 200, **options}
        producer = KafkaProducer(bootstrap_servers=servers, acks="all", **bounds)
        try:
            for sent in [producer.send(route.topic, value) for value in values]:
                sent.get(timeout=20)
        finally:
            producer.close(timeout=10)

    return write


def receive(broker: KafkaBroker, route: ServiceRoute, count: int) -> list[IncomingRecord]:
    """Receive ``count`` records from the beginning, commit them, and see that no more come."""
    subscription = broker.subscribe(route, client_id="strange")
    received: list[IncomingRecord] = []
    try:
        deadline = time.monotonic() + 40
        while len(received) < count:
            assert time.monotonic() < deadline, received
            try:
                received += subscription.receive(max_records=10, timeout=timedelta(seconds=1))
            except BrokerUnavailableError:
                continue  # it is tried again, and the deadline says how often
        subscription.commit(received)
        assert subscription.receive(max_records=10, timeout=timedelta(milliseconds=300)) == []
    finally:
        subscription.close()
    assert broker.positions(route).lag == 0
    return received


# --- what can be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        pytest.param([b"-H", b"name=\xff"], id="header value that is no UTF-8"),
        pytest.param([b"-H", b"na\xffme=1"], id="header name that is no UTF-8"),
        *(pytest.param([b"-z", name.encode()], id=name) for name in CODECS),
    ],
)
def test_record_that_other_clients_can_write_does_not_hold_up_its_partition(
    broker: KafkaBroker, route: ServiceRoute, kcat: Callable[..., None], how: list[bytes]
) -> None:
    values = [b"odd " * 100, b"y" * 700_000, b"plain"]
    kcat(values[0], *how)
    kcat(values[1], *how)
    kcat(values[2])

    assert [record.value for record in receive(broker, route, len(values))] == values


@pytest.mark.parametrize("name", CODECS)
def test_batches_of_every_codec_are_read(broker: KafkaBroker, route: ServiceRoute, produce: Produce, name: str) -> None:
    produce(*ODD, compression_type=name)
    produce(b"plain")

    assert [record.value for record in receive(broker, route, 4)] == [*ODD, b"plain"]


@pytest.mark.parametrize("name", CODECS)
def test_our_producer_compresses_by_every_codec(route: ServiceRoute, servers: list[str], name: str) -> None:
    broker = KafkaBroker(bootstrap_servers=servers, producer={"compression_type": name})
    producer = broker.producer(client_id="strange")
    records = [OutgoingRecord(number, route.topic, "k", b"v" * 1_000 * number, ()) for number in (1, 2, 3)]
    try:
        report = producer.send(records).report(timedelta(seconds=20))
        assert sorted(report.acknowledged) == [1, 2, 3]
        with taken_apart() as codecs:
            received = receive(broker, route, 3)
    finally:
        producer.close()
        broker.close()
    assert [record.value for record in received] == [record.value for record in records]
    assert codecs == {name}


@contextmanager
def taken_apart() -> Iterator[set[str]]:
    """Give the names of the codecs of the batches that are read meanwhile."""
    names = {0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
    found: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        read = DefaultRecordBatch.__iter__

        def noted(batch: Any) -> Any:
            found.add(names[batch.compression_type])
            return read(batch)

        patch.setattr(DefaultRecordBatch, "__iter__", noted)
        yield found


# --- what cannot -------------------------------------------------------------------------------------------------


def spoilt(data: bytes) -> bytes:
    """Compress ``data`` so that Kafka's own reader takes it and Python's does not."""
    return gzip.compress(bytes(data)) + b"and more"


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_batch_that_cannot_be_decompressed_is_kept_as_a_rejected_record(
    alias: str, broker: KafkaBroker, route: ServiceRoute, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(default_records, "gzip_encode", spoilt)
        produce(b"a" * 300, b"b" * 300, b"c" * 300, compression_type="gzip")
    produce(b"after")

    received = receive(broker, route, 3)

    before, stand_in, after = received
    assert (before.offset, before.value) == (0, b"before")
    assert (after.offset, after.value) == (4, b"after")
    assert stand_in.offset == 3
    [(name, said)] = stand_in.headers
    assert name == UNREADABLE
    assert said.startswith(b"offsets 1 to 3 cannot be read: BadGzipFile: ")
    consumer = build_consumer(service_route("agent"), MemoryBroker())
    consumer.handle([stand_in])
    kept = RejectedRecord.objects.using(alias).get(offset=3)
    assert (kept.topic, kept.partition) == (route.topic, 0)
    packed = bytes(kept.value or b"")[DefaultRecordBatch.HEADER_STRUCT.size :]
    assert b"b" * 300 in zlib.decompressobj(wbits=31).decompress(packed), "nothing of it is lost"
    assert "offsets 1 to 3" in str(json.loads(kept.headers))


MIB = 1024 * 1024


def bomb(mib: int) -> bytes:
    """Return one record with a value of so many MiB of zeros, compressed; nobody ever holds it whole."""
    size = mib * MIB
    head = bytearray(b"\0\0\0\x01")  # attributes, moment and offset; no key
    encode_varint(size, head.append)
    record = bytearray()
    encode_varint(len(head) + size + 1, record.append)
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(bytes(record + head)), *(packer.compress(bytes(MIB)) for _ in range(mib))]
    return b"".join([*pieces, packer.compress(b"\0"), packer.flush()])  # no headers


@pytest.fixture
def drop(produce: Produce, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Give a function that writes what ``bomb`` made as a batch of one record."""

    def write(packed: bytes) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(default_records, "gzip_encode", lambda data: packed)
            produce(b"x" * (len(packed) + 1_000), compression_type="gzip")

    return write


def receive_in_process(servers: list[str], route: ServiceRoute, count: int) -> dict[str, Any]:
    """Receive ``count`` records in a process of its own, as a group of its own; return what came and what it took."""
    command = [sys.executable, "-m", "tests.integration.memory_process", ",".join(servers), route.topic, str(count)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_gzip_bomb_is_one_rejected_record_and_takes_bounded_memory(
    alias: str,
    broker: KafkaBroker,
    servers: list[str],
    route: ServiceRoute,
    produce: Produce,
    drop: Callable[[bytes], None],
) -> None:
    """0.7 MB took 2.8 GiB, and there may be many."""
    produce(b"before")
    packed = bomb(720)
    assert len(packed) < 800_000
    for _ in range(3):
        drop(packed)
    produce(b"after")

    found = receive_in_process(servers, route, 5)

    assert found["grown_mib"] < 2 * MAX_BATCH_BYTES // MIB
    assert found["sizes"] == [6, *[len(packed) + DefaultRecordBatch.HEADER_STRUCT.size] * 3, 5]
    received = receive(broker, route, 5)
    assert [record.value for record in (received[0], received[-1])] == [b"before", b"after"]
    build_consumer(service_route("agent"), MemoryBroker()).handle(received[1:-1])
    kept = RejectedRecord.objects.using(alias).get(topic=route.topic, offset=2)
    assert kept.reason == (
        f"offsets 2 to 2 cannot be read: BatchTooLargeError: {len(packed):,} bytes of gzip decompress to more than the "
        f"limit of {MAX_BATCH_BYTES:,} bytes"
    )


def test_many_batches_just_below_the_limit_take_bounded_memory(
    servers: list[str], route: ServiceRoute, produce: Produce, drop: Callable[[bytes], None]
) -> None:
    """One answer of 8 MiB can hold a hundred: they are read as there is room for them."""
    packed = bomb(60)
    for _ in range(10):
        drop(packed)
    produce(b"after")

    found = receive_in_process(servers, route, 11)

    assert found["sizes"] == [60 * MIB] * 10 + [5]
    assert found["grown_mib"] < 6 * 60, "and not ten times"


def test_reading_goes_on_in_the_middle_of_an_unreadable_batch(
    broker: KafkaBroker, route: ServiceRoute, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What of a batch can be read is read; a group that has committed a part of it is not held up either."""
    produce(b"a", b"b", b"c")
    produce(b"after")
    read, bad = DefaultRecordBatch.__next__, 1

    def broken(batch: Any) -> Any:
        if batch.base_offset == 0 and batch._next_record_index == bad:
            raise ValueError("a length that cannot be")
        return read(batch)

    monkeypatch.setattr(DefaultRecordBatch, "__next__", broken)

    first, stand_in, after = receive(broker, route, 3)

    assert (first.value, after.value) == (b"a", b"after")
    assert stand_in.offset == 2
    assert b"offsets 1 to 2 cannot be read: ValueError" in stand_in.headers[0][1]


def test_batch_with_a_wrong_checksum_is_fetched_again_and_then_kept(
    broker: KafkaBroker, route: ServiceRoute, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(b"damaged")
    produce(b"after")
    monkeypatch.setattr(kafka_unreadable, "_is_whole", lambda batch: batch.base_offset != 0)

    stand_in, after = receive(broker, route, 2)

    assert b"offsets 0 to 0 cannot be read: its checksum is wrong" in stand_in.headers[0][1]
    assert b"damaged" in (stand_in.value or b"")
    assert after.value == b"after"


def test_batch_that_was_damaged_on_its_way_is_read_when_it_is_fetched_again(
    broker: KafkaBroker, route: ServiceRoute, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(b"damaged")
    answers = iter([False, True, True, True])
    monkeypatch.setattr(kafka_unreadable, "_is_whole", lambda batch: next(answers))

    assert [record.value for record in receive(broker, route, 1)] == [b"damaged"]


def test_missing_library_is_named_and_nothing_is_passed_over(
    broker: KafkaBroker, route: ServiceRoute, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That can be mended here, so no record is rejected for it."""
    produce(b"packed" * 100, compression_type="zstd")
    subscription = broker.subscribe(route, client_id="strange")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(codec, "zstd", None)
            with pytest.raises(
                BrokerUnavailableError, match=r"zstd, whose library.*pip install 'kafka-python\[zstd\]'"
            ):
                until_received(subscription)
        assert [record.value for record in until_received(subscription, patiently=True)] == [b"packed" * 100]
    finally:
        subscription.close()


def until_received(subscription: Any, *, patiently: bool = False) -> list[IncomingRecord]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if found := subscription.receive(max_records=10, timeout=timedelta(seconds=1)):
                return list(found)
        except BrokerUnavailableError:
            if not patiently:
                raise
    raise AssertionError("nothing came")
