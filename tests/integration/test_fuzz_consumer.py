"""Whatever lies on a topic or in a payload column: the batch comes to its end, and its good events are consumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.declarations.contracts import contracts
from outbox.models import OutboxMessage, RejectedRecord, service_route
from outbox.registry.catalog import service_models
from outbox.storage.rejections import HEADERS_MAX_LENGTH, KEY_MAX_BYTES, VALUE_MAX_BYTES
from outbox.wire.envelope import INSTALLATION_HEADER, decode_message
from outbox.workers.build import build_consumer
from tests import fuzz, notifications, records
from tests.conftest import SERVICES
from tests.fuzz import fuzzing

on_two_databases = pytest.mark.parametrize("database_alias", ["default", "mariadb", "mysql"], indirect=True)
of_each_service = pytest.mark.parametrize("service", SERVICES)

numbers = itertools.count(1)
"""Keys and offsets are used once, so that the examples of a test do not meet."""

OWN: Final = "own-000000000"
"""Stands for a text of an event's own in what is drawn, which has to be the same whatever happened before."""

ROW_ID: Final = 1_000_000_000_000_000
"""Likewise for the id of a row that is there."""

KEYS: Final = (None, b"", b"\xff\xfe", b"\x00", b"k" * 5_000)

keys = st.sampled_from(KEYS) | st.binary(max_size=20)
header_names = fuzz.texts.filter(lambda name: name != INSTALLATION_HEADER)  # its records are not looked up
headers = st.lists(st.tuples(header_names, st.binary(max_size=20)), max_size=3).map(tuple)


@pytest.fixture
def topic(alias: str, service: str) -> Iterator[Topic]:
    """Give what a test puts on the topic of ``service``, with its real contracts and handlers behind it."""
    broker = MemoryBroker()
    yield Topic(alias, service, build_consumer(service_route(service), broker))
    broker.close()
    records.empty(alias)
    notifications.empty(alias)


@dataclass(slots=True)
class Topic:
    """The rows and records of one service."""

    alias: str
    service: str
    consumer: Consumer
    batch: list[IncomingRecord] = field(default_factory=list)

    @property
    def model(self) -> type[OutboxMessage]:
        return service_models()[self.service]

    @property
    def event_types(self) -> list[str]:
        return [contract.event_type for contract in contracts.of_service(self.service)]

    def insert(self, event_type: str, stored: str) -> int:
        """Insert a row with a key of its own as other software does, with the columns that it knows."""
        row = self.model(
            event_type=event_type,
            service_name=self.service,
            topic=service_route(self.service).topic,
            message_key=f"key-{next(numbers)}",
            payload=own(stored),
            status="published",
        )
        row.save(using=self.alias, force_insert=True)
        return int(row.pk)

    def good(self) -> int:
        """Insert an event that can be handled, and put its record on the topic."""
        event_type = self.event_types[0]
        stored = {"event_id": OWN, "event_version": version_of(event_type), "payload": payload_of(event_type)}
        row_id = self.insert(event_type, json.dumps(stored))
        self.put(message(row_id, event_type))
        return row_id

    def put(self, value: bytes | None, key: bytes | None = b"k", headers: Any = ()) -> IncomingRecord:
        number = next(numbers)
        made = IncomingRecord(
            topic=service_route(self.service).topic,
            partition=number % 3,
            offset=number,
            key=key,
            value=value,
            header_source=headers,
        )
        self.batch.append(made)
        return made

    def handle(self) -> None:
        """Have the consumer handle what was put, and see that every record is accounted for."""
        batch, self.batch = self.batch, []
        before = self.consumer.totals.handled
        self.consumer.handle(batch)
        assert self.consumer.totals.handled - before == len(batch), self.consumer.totals

    def kept(self, record: IncomingRecord) -> RejectedRecord | None:
        """Return the rejected record that ``record`` became, as it has to be."""
        found = RejectedRecord.objects.using(self.alias).filter(partition=record.partition, offset=record.offset)
        for row in found:
            assert (row.service, row.topic) == (self.service, record.topic)
            assert row.reason
            assert as_bytes(row.key) == (record.key and record.key[:KEY_MAX_BYTES])
            assert as_bytes(row.value) == (record.value and record.value[:VALUE_MAX_BYTES])
            assert (row.key_size, row.value_size) == (len(record.key or b""), len(record.value or b""))
            names = [name for name, _ in json.loads(row.headers)]
            assert names == [name for name, _ in record.headers[: len(names)]]
            assert len(names) == len(record.headers) or len(row.headers) >= HEADERS_MAX_LENGTH
            return row
        return None

    def rows(self, row_ids: Collection[int]) -> list[OutboxMessage]:
        return list(self.model.objects.using(self.alias).filter(pk__in=row_ids).order_by("pk"))


def as_bytes(column: Any) -> bytes | None:
    return None if column is None else bytes(column)


def version_of(event_type: str) -> str:
    return contracts.get(event_type).version


def message(row_id: int, event_type: str, **fields: Any) -> bytes:
    return json.dumps({"outbox_id": row_id, "event_type": event_type, "payload": None, **fields}).encode()


def own(text: str) -> str:
    """Put what no other event has in the place of ``OWN``."""
    return text.replace(OWN, f"own-{next(numbers):09}")


def payload_of(event_type: str) -> dict[str, Any]:
    payload = fuzz.full_payload(event_type)
    return payload | {name: OWN for name in ("conversation_id", "trigger_id", "dedupe_key") if name in payload}


def columns(event_type: str) -> st.SearchStrategy[str]:
    """Return payload columns of ``event_type``, most of them not as they should be, all of them text."""
    outer = fuzz.document({"event_id": OWN, "event_type": event_type, "event_version": version_of(event_type)})
    inner = fuzz.document(payload_of(event_type))
    raw = fuzz.nested(outer, "payload", inner) | fuzz.nested_similar(outer, "payload", inner) | st.binary(max_size=30)
    return raw.map(lambda column: column.decode("utf-8", "replace"))


# --- records -----------------------------------------------------------------------------------------------------


@on_two_databases
@of_each_service
@fuzzing(25)
@given(data=st.data())
def test_any_records_are_kept_or_tied_to_a_row(topic: Topic, data: st.DataObject) -> None:
    event_type = topic.event_types[-1]
    whole = {"outbox_id": ROW_ID, "event_type": event_type, "service_name": topic.service}
    values = st.one_of(
        st.none(),
        st.binary(max_size=100),
        fuzz.raw_values.map(lambda raw: raw.encode("utf-8", "surrogatepass")),
        fuzz.mutants(fuzz.document(whole)),
        fuzz.similar(fuzz.document(whole)).map(str.encode),
        st.builds(message, st.just(ROW_ID), fuzz.texts),
        st.builds(message, st.just(ROW_ID), st.just(event_type), service_name=fuzz.texts),
    )
    drawn = data.draw(st.lists(st.tuples(values, keys, headers), max_size=6))
    known = topic.insert(event_type, "{}")
    first = topic.good()
    put = [
        topic.put(value and value.replace(str(ROW_ID).encode(), str(known).encode()), key, names)
        for value, key, names in drawn
    ]
    last = topic.good()

    topic.handle()

    assert [row.status for row in topic.rows([first, last])] == ["consumed"] * 2
    tied = {decode_message(record.value).outbox_id for record in put if topic.kept(record) is None}
    event(f"{len(tied)} tied to a row")
    assert {row.pk for row in topic.rows(tied)} == tied, "neither kept nor of a row"
    [of_known] = topic.rows([known])
    assert of_known.status == ("dead" if known in tied else "published")


# --- rows --------------------------------------------------------------------------------------------------------


@on_two_databases
@of_each_service
@fuzzing(30)
@given(data=st.data())
def test_any_payload_columns_are_handled_or_dead_with_a_reason(topic: Topic, data: st.DataObject) -> None:
    types = st.sampled_from(topic.event_types)
    rows = types.flatmap(lambda event_type: st.tuples(st.just(event_type), columns(event_type), keys, headers))
    drawn = data.draw(st.lists(rows, min_size=1, max_size=4))
    good = [topic.good()]
    bad = []
    for event_type, column, key, names in drawn:
        bad.append(topic.insert(event_type, column))
        topic.put(message(bad[-1], event_type), key, names)
    good.append(topic.good())

    topic.handle()

    assert [row.status for row in topic.rows(good)] == ["consumed"] * 2
    for row in topic.rows(bad):
        event(row.status)
        assert row.status in {"consumed", "dead"}, (row.status, row.last_error, row.payload[:500])
        assert (row.status == "dead") == bool(row.last_error)
        assert row.retry_count == 0 or row.last_error.startswith("Discard: ")
