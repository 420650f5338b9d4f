"""The table takes rows of other software, keeps the order of inserts and serves as a queue: on every database."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from agent_events.agent.models import AgentOutboxMessage
from outbox.fields import SHARD_COUNT
from outbox.storage.repository import OutboxRepository
from outbox.wire.envelope import encode_envelope
from tests import factories
from tests.factories import database_now, get, row, rows
from tests.repositories import UNLIMITED, claim_ids, locked, new_row, published_row
from tests.toys import NOTE

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


# --- the table ---------------------------------------------------------------------------------------------------


def test_row_of_other_software_with_the_shared_columns_only_is_valid(alias: str, repository: OutboxRepository) -> None:
    stored = encode_envelope(factories.envelope()).decode()
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload, status,"
            " retry_count, max_retry) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [NOTE, "agent", "smartflow.agent.outbox", "conversation-1", stored, "pending", 0, 20],
        )

    [claimed] = repository.claim(shards=None, limit=10, max_length=UNLIMITED).rows

    found = get(alias, claimed.id)
    assert claimed.payload == stored.encode()
    assert claimed.traceparent == ""
    assert 0 <= found.shard < SHARD_COUNT
    assert found.created_at is not None
    assert found.parks_key is False
    assert abs(found.created_at - database_now(alias)) < MINUTE


def test_row_with_every_shared_column_given_as_null_or_value_is_valid(alias: str, repository: OutboxRepository) -> None:
    now = database_now(alias).replace(tzinfo=None).isoformat(" ")
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload, status,"
            " retry_count, max_retry, next_retry_at, last_error, published_at, consumed_at, created_at, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, NULL, NULL, NULL, NULL, %s, %s)",
            [NOTE, "", "", "conversation-1", '{"payload": {}}', "pending", 0, 20, now, now],
        )

    [claimed] = repository.claim(shards=None, limit=10, max_length=UNLIMITED).rows

    assert claimed.message_key == "conversation-1"
    assert locked(repository, claimed.id)[0].is_due


def test_default_times_are_utc_whatever_the_time_zone_of_the_session(alias: str, repository: OutboxRepository) -> None:
    zones = {"mysql": "SET time_zone = '+09:00'", "postgresql": "SET TIME ZONE 'Asia/Tokyo'"}
    connection = connections[alias]
    with connection.cursor() as cursor:
        if connection.vendor in zones:
            cursor.execute(zones[connection.vendor])
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, message_key, payload) VALUES (%s, %s, %s)",
            [NOTE, "k", '{"payload": {}}'],
        )
    connection.close()  # and with it the session's time zone

    assert len(claim_ids(repository)) == 1
    assert abs(AgentOutboxMessage.objects.using(alias).get().next_retry_at - database_now(alias)) < MINUTE


def test_a_key_has_one_shard_and_keys_spread_over_shards(alias: str) -> None:
    rows(alias, 200, key=lambda number: f"conversation-{number % 100}")

    shards: dict[str, set[int]] = {}
    for key, shard in AgentOutboxMessage.objects.using(alias).values_list("message_key", "shard"):
        shards.setdefault(key, set()).add(shard)

    assert all(len(of_key) == 1 for of_key in shards.values())
    assert len(set.union(*shards.values())) > SHARD_COUNT / 2


@pytest.mark.parametrize("key", ["k", "", "x" * 128, "会话-1", "🙂", "O'Brien; --", "a\\b%s", "Ünïcode"])
def test_any_key_gets_a_shard_and_comes_back_as_it_was(alias: str, repository: OutboxRepository, key: str) -> None:
    row(alias, key=key)

    [claimed] = repository.claim(shards=range(SHARD_COUNT), limit=10, max_length=UNLIMITED).rows

    assert claimed.message_key == key


def test_now_is_the_clock_of_the_database(alias: str, repository: OutboxRepository) -> None:
    before = database_now(alias)

    assert before <= repository.now() <= database_now(alias)
    assert repository.now().utcoffset() == timedelta(0)


# --- insert ------------------------------------------------------------------------------------------------------


def test_insert_keeps_the_order_and_fills_in_the_route(alias: str, repository: OutboxRepository) -> None:
    assert repository.insert(new_row(number) for number in range(1200)) == 1200

    found = list(AgentOutboxMessage.objects.using(alias).order_by("id"))
    assert [each.message_key for each in found] == [f"key-{number}" for number in range(1200)]
    assert {(each.service_name, each.topic, each.max_retry, each.status) for each in found} == {
        ("agent", "smartflow.agent.outbox", 7, "pending")
    }
    assert found[0].traceparent == "00-aa-bb-01"


@pytest.mark.parametrize(("count", "statements"), [(0, 0), (1, 1), (500, 1), (501, 2)])
def test_insert_takes_one_statement_for_some_hundred_rows(
    alias: str, repository: OutboxRepository, django_assert_num_queries: Any, count: int, statements: int
) -> None:
    with django_assert_num_queries(statements, connection=connections[alias]):
        repository.insert([new_row(number) for number in range(count)])


def test_insert_cuts_statements_by_size(
    alias: str, repository: OutboxRepository, django_assert_num_queries: Any
) -> None:
    large = b'{"payload": "' + b"x" * 1_500_000 + b'"}'
    with django_assert_num_queries(2, connection=connections[alias]):
        repository.insert([new_row(number, payload=large) for number in range(4)])

    assert AgentOutboxMessage.objects.using(alias).count() == 4


# --- the table as a queue ----------------------------------------------------------------------------------------


def test_published_rows_are_a_queue_in_the_order_of_their_ids(alias: str) -> None:
    repository = factories.repository(foreign_types=("memory.extract.requested",))
    first = published_row(alias, ago=SECOND, key="a", due_in=HOUR)
    second = published_row(alias, ago=MINUTE, key="b", due_in=MINUTE)
    published_row(alias, ago=HOUR, event_type="memory.extract.requested")
    row(alias)

    shard = get(alias, first).shard
    of_first, of_second = (first, NOTE, "a", shard), (second, NOTE, "b", get(alias, second).shard)
    assert repository.published(shards=None, limit=10) == [of_first, of_second]
    assert repository.published(shards=None, limit=1) == [of_second], "the longest waiting first"
    assert repository.published(shards=set(), limit=10) == []
    assert of_first in repository.published(shards={shard}, limit=10)
    assert of_first not in repository.published(shards=set(range(SHARD_COUNT)) - {shard}, limit=10)
