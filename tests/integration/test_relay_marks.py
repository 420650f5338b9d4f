"""A consumer that has an event before its row is marked: its handler holds up nobody, and nothing is sent twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections

from outbox.brokers.memory import MemoryBroker
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Failure
from tests import factories
from tests.factories import get, row, rows, status_counts, statuses
from tests.relays import MakeRelay, sent_ids, step_until_idle
from tests.toys import RecordingStop
from tests.transactions import held_elsewhere

LOCKING = ("mariadb", "mysql", "postgres")
"""Databases that lock rows; SQLite has one writer at a time."""


def in_handler(alias: str, row_id: int, then: Callable[[OutboxRepository], Any] = lambda _: None) -> Any:
    """Have a consumer hold a row for the block, and do ``then`` with it at the end."""
    repository = factories.repository()
    return held_elsewhere(alias, lambda: repository.lock([row_id], max_length=10**9), lambda: then(repository))


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_row_in_a_slow_handler_holds_up_no_other(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    slow, *others = rows(alias, 5, key=lambda number: f"key-{number}")
    relay = make_relay(batch_size=2)

    with in_handler(alias, slow, then=lambda repository: repository.mark_consumed([slow])):
        step_until_idle(relay)
        later = row(alias, key="later")
        step_until_idle(relay)
        assert statuses(alias) == {slow: "pending", **dict.fromkeys([*others, later], "published")}
        assert sorted(sent_ids(broker)) == [slow, *others, later], "the one in the handler is sent already"
        assert not relay.step(), "it does not turn round it as fast as it can"

    step_until_idle(relay)
    assert statuses(alias)[slow] == "consumed"
    assert sorted(sent_ids(broker)) == [slow, *others, later]


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_row_is_marked_when_its_consumer_ended_without_a_word(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    row_id = row(alias)
    relay = make_relay(redeliver_after_seconds=300)

    with in_handler(alias, row_id):
        step_until_idle(relay)

    step_until_idle(relay)
    found = get(alias, row_id)
    assert (found.status, sent_ids(broker)) == ("published", [row_id])
    assert found.next_retry_at - found.published_at > timedelta(seconds=250), "redelivered when its time is over"


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_row_that_its_consumer_put_back_is_sent_again(alias: str, broker: MemoryBroker, make_relay: MakeRelay) -> None:
    row_id = row(alias)
    relay = make_relay()

    def fail(repository: OutboxRepository) -> None:
        [locked] = repository.lock([row_id], max_length=10**9)
        repository.retry(locked, due_at=repository.now(), failure=Failure("no"))

    with in_handler(alias, row_id, then=fail):
        step_until_idle(relay)

    step_until_idle(relay)
    step_until_idle(relay)
    assert sent_ids(broker) == [row_id, row_id]
    assert (get(alias, row_id).status, get(alias, row_id).retry_count) == ("published", 1)


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_once_does_not_wait_for_handlers(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop
) -> None:
    slow, *_others = ids = rows(alias, 3, key=str)

    with in_handler(alias, slow):
        make_relay().run(stop, once=True)

    assert sorted(sent_ids(broker)) == ids
    assert status_counts(alias) == {"pending": 1, "published": 2}


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_refused_record_whose_older_copy_is_in_a_handler_dies_afterwards(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay
) -> None:
    refused, other = rows(alias, 2, key=str)
    broker.refuse(lambda record: "too large" if record.outbox_id == refused else None)
    relay = make_relay()

    with in_handler(alias, refused):
        relay.step()
        assert statuses(alias) == {refused: "pending", other: "published"}

    step_until_idle(relay)
    assert statuses(alias) == {refused: "dead", other: "published"}


def test_what_was_acknowledged_before_the_database_went_away_is_not_sent_again(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = rows(alias, 3)
    real = OutboxRepository.mark_published
    failures = iter(range(2))

    def mark_published(self: OutboxRepository, *args: Any, **kwargs: Any) -> Any:
        for _ in failures:
            lost = ("disk I/O error",) if connections[alias].vendor == "sqlite" else (2013, "Lost connection")
            raise OperationalError(*lost) from type("Lost", (Exception,), {"sqlstate": "57P01"})()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(OutboxRepository, "mark_published", mark_published)
    make_relay().run(stop, once=True)

    assert sent_ids(broker) == ids
    assert status_counts(alias) == {"published": 3}


@pytest.mark.parametrize("database_alias", LOCKING, indirect=True)
def test_locked_row_is_no_outage(
    alias: str,
    make_relay: MakeRelay,
    stop: RecordingStop,
    caplog: pytest.LogCaptureFixture,
) -> None:
    row_id = row(alias)

    with caplog.at_level(logging.WARNING), in_handler(alias, row_id):
        make_relay().run(stop, once=True)

    assert "retrying" not in caplog.text
