"""Records that belong to no row are kept with their bytes, once, and stop nobody else."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from outbox.brokers.base import IncomingRecord
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from outbox.models import RejectedRecord
from outbox.storage.rejections import HEADERS_MAX_LENGTH, KEY_MAX_BYTES, VALUE_MAX_BYTES, RejectionStore
from outbox.wire.envelope import encode_message
from tests import factories
from tests.factories import database_now, get, record, record_of, row, statuses
from tests.toys import OTHER, Toys, effect_ids

HOUR = timedelta(hours=1)


def rejected(alias: str) -> list[RejectedRecord]:
    return list(RejectedRecord.objects.using(alias).order_by("id"))


DEEP = b'{"outbox_id": 1, "event_type": "x", "payload": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x00\xff garbage", "not an outbox message"),
        (b"", "no value"),
        (None, "no value"),
        (b"[1, 2]", "not an outbox message"),
        (b'{"outbox_id": 1}', "event_type"),
        (b'{"outbox_id": 999999999, "event_type": "toy.note"}', "no row 999999999 in agent_outbox_messages"),
        (b'{"outbox_id": 1, "event_type": "toy.note", "service_name": "task"}', "belongs to service 'task'"),
        (b'{"outbox_id": 1, "event_type": "toy.note", "service_name": "ta\\u0000sk"}', "belongs to service"),
        (DEEP, "not an outbox message"),
    ],
    ids=["bytes", "empty", "tombstone", "array", "half", "pruned", "foreign", "nul", "deep"],
)
def test_record_without_a_row_is_kept_with_its_bytes(
    alias: str, consumer: Consumer, value: bytes | None, reason: str
) -> None:
    good = row(alias, status=Status.PUBLISHED)
    bad = IncomingRecord(
        topic="smartflow.agent.outbox",
        partition=2,
        offset=41,
        key=b"\xfe key",
        value=value,
        header_source=(("trace", b"\xff\x00"), ("event_type", b"x")),
    )

    consumer.handle([bad, record_of(alias, good)])

    [kept] = rejected(alias)
    assert (kept.service, kept.topic, kept.partition, kept.offset) == ("agent", "smartflow.agent.outbox", 2, 41)
    assert bytes(kept.key) == b"\xfe key"
    assert (None if kept.value is None else bytes(kept.value)) == value
    assert json.loads(kept.headers)[1] == ["event_type", "x"]
    assert reason in kept.reason
    assert abs(kept.received_at - database_now(alias)) < HOUR
    assert effect_ids(alias) == [good]
    assert (consumer.totals.rejected, consumer.totals.consumed) == (1, 1)


def test_large_foreign_records_are_kept_in_part_and_stop_nobody(alias: str, consumer: Consumer) -> None:
    """Thirty of 0.9 MB are more than one statement may be long, and a topic takes as much of them as comes."""
    good = row(alias, status=Status.PUBLISHED)
    headers = tuple((f"header-{n}", b"\xff" * 1_000) for n in range(1_000))
    flood = [
        IncomingRecord(
            topic="smartflow.agent.outbox",
            partition=0,
            offset=offset,
            key=b"\x00" * 100_000,
            value=b"\x00\xff'" * 300_000 + bytes([offset]),
            header_source=headers,
        )
        for offset in range(30)
    ]

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle([*flood, record_of(alias, good)])

    assert effect_ids(alias) == [good]
    kept = rejected(alias)
    assert [each.offset for each in kept] == list(range(30))
    for each, sent in zip(kept, flood, strict=True):
        assert sent.value is not None
        assert bytes(each.value) == sent.value[:VALUE_MAX_BYTES]
        assert bytes(each.key) == bytes(KEY_MAX_BYTES)
        assert (each.key_size, each.value_size) == (100_000, 900_001)
        assert each.digest == hashlib.sha256(bytes(100_000) + b"\x00" + sent.value).hexdigest()
        assert len(each.headers) < 10 * HEADERS_MAX_LENGTH
        assert json.loads(each.headers)[0][0] == "header-0"
    assert max(len(query["sql"]) for query in captured) < 16 * 1024 * 1024
    consumer.handle(flood)
    assert RejectedRecord.objects.using(alias).count() == 30


def test_rejected_record_that_comes_again_is_kept_once(alias: str, consumer: Consumer) -> None:
    garbage = record(b"garbage", partition=1, offset=7)

    consumer.handle([garbage])
    consumer.handle([garbage])
    consumer.handle([record(b"of a topic made anew", partition=1, offset=7)])

    assert [bytes(kept.value) for kept in rejected(alias)] == [b"garbage", b"of a topic made anew"]


def test_records_that_say_the_same_are_each_kept(alias: str, consumer: Consumer) -> None:
    value = b'{"outbox_id": 999999999, "event_type": "toy.note"}'

    consumer.handle([record(value, offset=1), record(value, offset=2), record(b"garbage", offset=3)])

    assert sorted(kept.offset for kept in rejected(alias)) == [1, 2, 3]
    assert (consumer.totals.rejected, consumer.totals.duplicates) == (3, 0)


def test_record_of_another_type_than_its_row_is_rejected(alias: str, toys: Toys) -> None:
    consumer = factories.consumer(alias, toys, foreign_types=("memory.extract.requested",))
    own, foreign = (
        row(alias, status=Status.PUBLISHED),
        row(alias, event_type="memory.extract.requested", status=Status.PUBLISHED),
    )
    misnamed = record(encode_message(factories.envelope(OTHER), outbox_id=own, service="agent"))

    consumer.handle([misnamed, record_of(alias, foreign)])

    assert len(rejected(alias)) == 2
    assert set(statuses(alias).values()) == {"published"}


def test_foreign_record_with_the_id_of_a_row_does_not_hide_the_row(alias: str, consumer: Consumer) -> None:
    own = row(alias, status=Status.PUBLISHED)
    foreign = record(encode_message(factories.envelope("somebody.else"), outbox_id=own, service=""))

    consumer.handle([foreign, record_of(alias, own)])

    assert effect_ids(alias) == [own]
    assert [kept.offset for kept in rejected(alias)] == [foreign.offset]
    assert consumer.totals.duplicates == 0


def test_rejected_records_of_a_batch_that_fails_are_kept_all_the_same(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    bad = row(alias, status=Status.PUBLISHED)
    toys.fail(bad, ValueError("no"))

    consumer.handle([record(b"garbage 1"), record_of(alias, bad), record(b"garbage 2")])

    assert sorted(bytes(kept.value) for kept in rejected(alias)) == [b"garbage 1", b"garbage 2"]
    assert get(alias, bad).retry_count == 1


def test_resolving_a_rejected_record_takes_it_off_the_open_list_once(alias: str, consumer: Consumer) -> None:
    consumer.handle([record(b"garbage")])
    [kept] = rejected(alias)
    store = RejectionStore("agent", alias)

    assert RejectionStore("task", alias).resolve([kept.pk], by="ann") == 0
    assert store.resolve([kept.pk], by="a" * 200) == 1
    assert store.resolve([kept.pk], by="bob") == 0
    assert rejected(alias)[0].resolved_by == "a" * 150
