"""The parts of kafka-python that are not public: tried once a process, done without where they are otherwise."""

from __future__ import annotations

import logging
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaTimeoutError

from outbox.brokers.kafka import encoding as kafka_encoding
from outbox.brokers.kafka import private as kafka_private
from outbox.brokers.kafka import records as kafka_records
from outbox.brokers.kafka import ways as kafka_ways
from outbox.brokers.kafka.client import abandon
from outbox.brokers.kafka.private import Part, close_client, untested_version
from tests.unit.test_kafka_encoding import TOPIC, call, held, producer
from tests.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
SOON_S = 5.0


@pytest.fixture(autouse=True)
def _as_at_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end with nothing tried and nothing said."""
    monkeypatch.setattr(kafka_private, "_said", set())
    forget()
    yield
    forget()


def forget() -> None:
    kafka_ways.writing_fault.cache_clear()
    kafka_ways.reading_fault.cache_clear()


# --- the version -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.0.12", "3.0.13", "3.0.99"])
def test_versions_within_the_bound_are_tested(version: str) -> None:
    assert untested_version(version) == ""


@pytest.mark.parametrize("version", ["2.3.0", "3.0.11", "3.1", "3.1.0", "3.1.0.dev0", "3.10.1", "4.0.0"])
def test_versions_outside_of_the_bound_are_not(version: str) -> None:
    assert untested_version(version) == version


def test_installed_version_is_within_the_bound_and_every_place_says_the_same() -> None:
    assert untested_version() == ""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    [stated] = project["optional-dependencies"]["kafka"]
    assert stated.replace("[crc32c,lz4,snappy,zstd]", "") == kafka_private.REQUIREMENT
    low, high = (".".join(map(str, each)) for each in (kafka_private.TESTED_FROM, kafka_private.TESTED_BEFORE))
    assert f"kafka-python>={low},<{high}" == kafka_private.REQUIREMENT
    pinned = next(line for line in (CHECKOUT / "requirements.txt").read_text().splitlines() if "kafka-python[" in line)
    assert untested_version(pinned.partition("==")[2].split()[0]) == ""


# --- the self-test ---------------------------------------------------------------------------------------------------


def test_both_ways_agree() -> None:
    assert kafka_ways.faults() == {}


def test_where_our_batch_would_be_another_send_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_encoding, "_varints", WrongVarints())

    with producer() as client:
        for _ in range(2):
            writer = kafka_ways.writer(client)
            with writer.batch():
                writer.write(TOPIC, **call(headers=(("name", b"header"),)))
        [[batch]] = held(client).values()

    assert isinstance(writer, kafka_ways.PublicWriter)
    assert b"header" in batch
    [record] = caplog.records
    assert "records are encoded by send(), at twice the cost (the batch has other bytes" in record.getMessage()


class WrongVarints(kafka_encoding._Varints):
    def __getitem__(self, number: int) -> bytes:
        return super().__getitem__(number) if number else b"\x01"


def test_where_keys_would_go_elsewhere_send_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_encoding.partitioner, "murmur2", lambda _: 7)

    assert "belongs to another partition" in kafka_ways.writing_fault()


def test_where_our_records_would_be_others_the_client_reads_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = kafka_records._read_bytes
    monkeypatch.setattr(kafka_records, "_read_bytes", lambda buffer, at: (b"odd", read(buffer, at)[1]))
    consumer = SimpleNamespace(_fetcher=SimpleNamespace(PartitionRecords=Fetcher.PartitionRecords))

    for _ in range(2):
        kafka_ways.read_whatever_lies_there(consumer)

    assert consumer._fetcher.PartitionRecords is Fetcher.PartitionRecords
    [record] = caplog.records
    assert Part.READING.value in record.getMessage()


def test_client_whose_modules_are_gone_is_used_by_its_public_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise ImportError("No module named 'kafka.record.util'")

    for module in (kafka_encoding, kafka_records):
        monkeypatch.setattr(module, "difference", gone)

    assert set(kafka_ways.faults()) == {Part.WRITING, Part.READING}
    assert "ImportError: No module named" in kafka_ways.faults()[Part.READING]


def test_self_test_runs_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(kafka_encoding, "difference", lambda: calls.append("encoding") or "")
    monkeypatch.setattr(kafka_records, "difference", lambda: calls.append("records") or "")

    with producer() as one, producer() as other:
        for client in (one, other):
            kafka_ways.writer(client)
        kafka_ways.faults()
        kafka_ways.faults()

    assert sorted(calls) == ["encoding", "records"]


# --- closing ---------------------------------------------------------------------------------------------------------


class Client:
    """A client with an I/O thread that ends when ``ended`` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._sender = threading.Thread(target=self.ended.wait, args=(SOON_S,), name="stubborn", daemon=True)
        self._sender.start()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(kafka_private, "_END_S", 0.05)
    made = Client()
    yield made
    made.ended.set()
    made._sender.join()


def test_client_that_closes_as_it_should_is_no_news(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    close_client(client, client.ended.set)

    assert not client._sender.is_alive()
    assert caplog.records == []


def test_client_below_is_closed_where_the_thread_goes_on(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """As with a version whose ``close`` leaves what it was given to who gave it."""
    close_client(client, lambda: None, SimpleNamespace(close=client.ended.set))

    assert not client._sender.is_alive()
    assert caplog.records == []


def test_thread_that_goes_on_all_the_same_is_said(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    close_client(client, lambda: None, SimpleNamespace(close=lambda: None))

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "Kafka client not closed: its thread goes on" in record.getMessage()
    assert "thread=stubborn kafka_python=3." in record.getMessage()


def test_client_whose_thread_cannot_be_seen_is_closed_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    for _ in range(2):
        close_client(SimpleNamespace(), lambda: closed.append("closed"))

    assert closed == ["closed", "closed"]
    [record] = caplog.records
    assert Part.CLOSING.value in record.getMessage()


def test_producer_that_cannot_be_told_to_end_is_closed_when_its_records_have_expired(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = threading.Event()
    answers: list[Callable[[], Any]] = [timed_out, timed_out, closed.set]

    abandon(SimpleNamespace(close=lambda timeout: answers.pop(0)()), patience_seconds=5.0)

    wait_until(closed.is_set, timeout=SOON_S)
    assert not answers
    [record] = caplog.records
    assert Part.CLOSING.value in record.getMessage()


def timed_out() -> None:
    raise KafkaTimeoutError
