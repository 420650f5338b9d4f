"""A handler beyond its time limit: called once, charged once, and its connection thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction

from outbox import Delivery
from outbox.consumer.loop import Consumer
from tests.consumers import deliver, published
from tests.factories import get, make_due, statuses
from tests.integration.misbehaving import check_that_these_failed_alone, execute
from tests.toys import BULK, NOTE, Toys, effect_ids
from tests.transactions import connection_id_of

LIMIT = timedelta(milliseconds=300)
FOREVER_S = 40
on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)

Hang = Callable[[str], None]


def loop(_alias: str) -> None:
    deadline = time.monotonic() + FOREVER_S
    while time.monotonic() < deadline:
        pass


def swallow_and_return(alias: str) -> None:
    with suppress(BaseException):
        loop(alias)


def wait_in_the_database(alias: str) -> None:
    sleep = "PG_SLEEP" if connections[alias].vendor == "postgresql" else "SLEEP"
    execute(alias, f"SELECT {sleep}({FOREVER_S})")


HANGS = [
    *((alias, hang) for alias in ("default", "mariadb", "mysql", "postgres") for hang in (loop, swallow_and_return)),
    *((alias, wait_in_the_database) for alias in ("mariadb", "mysql", "postgres")),
]


@pytest.mark.parametrize(("database_alias", "hang"), HANGS, indirect=["database_alias"])
def test_event_beyond_its_limit_is_called_once_and_charged_once(
    alias: str, toys: Toys, consumer: Consumer, hang: Hang
) -> None:
    ids = published(alias, 6, key=str)
    late = ids[2]
    _let_hang(toys, {late}, hang)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {late}, "HandlerTimeoutError", "did not return within 0.3 s")
    assert [call for call in toys.calls if late in call] == [(late,)]
    assert (consumer.totals.consumed, consumer.totals.retried) == (5, 1)


def test_what_follows_a_late_event_in_its_key_waits_for_it(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 6, key=lambda number: "ab"[number % 2])
    _let_hang(toys, {ids[2]}, loop)

    deliver(alias, consumer, ids)

    assert effect_ids(alias, key="a") == ids[:1]
    assert effect_ids(alias, key="b") == ids[1::2]
    assert get(alias, ids[4]).retry_count == 0


def test_list_handler_beyond_its_limit_is_done_one_by_one_and_the_late_event_charged(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 5, key=str, event_type=BULK)
    late = ids[3]
    _let_hang(toys, {late}, loop)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {late}, "HandlerTimeoutError", "did not return within 0.3 s")
    assert [call for call in toys.calls if late in call] == [tuple(ids), (late,)]


@on_servers
def test_connection_of_a_late_call_is_thrown_away_and_the_next_batch_has_another(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 2, key=str)
    used: list[int] = []

    def note(deliveries: Sequence[Delivery[Any]]) -> None:
        used.append(connection_id_of(alias))
        if deliveries[0].outbox_id == ids[0] and deliveries[0].attempt == 1:
            loop(alias)

    toys.before = note
    _set_limits(toys)
    deliver(alias, consumer, [ids[0]])
    deliver(alias, consumer, [ids[1]])
    make_due(alias)
    deliver(alias, consumer, [ids[0]])

    assert used[0] != used[1]
    assert statuses(alias) == dict.fromkeys(ids, "consumed")
    assert sorted(effect_ids(alias)) == ids


def test_event_that_is_late_every_time_dies_of_its_attempts(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1, max_retry=2)
    _let_hang(toys, {row_id}, loop)

    for _ in range(2):
        deliver(alias, consumer, [row_id])
        make_due(alias)

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.error_class) == ("dead", 2, "HandlerTimeoutError")


def test_hook_beyond_the_limit_is_ended_and_its_event_is_consumed(
    alias: str, toys: Toys, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = published(alias, 3, key=str)
    ran: list[int] = []

    def hooks(deliveries: Sequence[Delivery[Any]]) -> None:
        row_id = deliveries[0].outbox_id
        if row_id == ids[1]:
            transaction.on_commit(lambda: loop(alias), using=alias)
        transaction.on_commit(lambda: ran.append(row_id), using=alias)

    toys.before = hooks
    _set_limits(toys)
    deliver(alias, consumer, ids)

    assert ran == ids
    assert effect_ids(alias) == ids
    assert statuses(alias) == dict.fromkeys(ids, "consumed")
    assert "on_commit hook failed, its event is consumed" in caplog.text
    [more] = published(alias, 1)
    deliver(alias, consumer, [more])
    assert get(alias, more).status == "consumed"


def test_limit_is_that_of_the_event_type(alias: str, toys: Toys, consumer: Consumer) -> None:
    """A short one of another type ends nobody else's call."""
    ids = published(alias, 2, key=str, event_type=BULK)
    toys.time_limits[NOTE] = timedelta(microseconds=1)
    deadline = time.monotonic() + 0.6

    def take_a_while(_deliveries: Sequence[Delivery[Any]]) -> None:
        while time.monotonic() < deadline:
            pass

    toys.before = take_a_while
    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids


def _set_limits(toys: Toys) -> None:
    toys.time_limits.update({NOTE: LIMIT, BULK: LIMIT})


def _let_hang(toys: Toys, row_ids: set[int], hang: Hang) -> None:
    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id in row_ids for each in deliveries):
            hang(deliveries[0].database)

    toys.before = before
    _set_limits(toys)
