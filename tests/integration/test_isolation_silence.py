"""A database that is silent and loses no connection: nobody is charged, and a handler that silences it dies of that."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from outbox import Delivery
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, Presence
from tests import factories
from tests.consumers import published, see_through
from tests.factories import TTL, get, make_due, statuses
from tests.integration.misbehaving import execute
from tests.proxied import proxied
from tests.toys import BULK, NOTE, SERVICE, Toys, effect_ids

LIMIT = timedelta(seconds=1)
SILENT_S = 4.0

on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)


class SilentWitness:
    """A witness whose connection lives on, and that is left waiting while a handler is at work."""

    def __init__(self) -> None:
        self.silent_for = 60.0

    def token(self) -> object | None:
        return self

    def lived_on(self, token: object | None) -> bool:
        return token is self

    def silent_s(self, since: float) -> float:
        return self.silent_for


@on_servers
@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("count", [1, 4])
def test_handler_that_waits_for_a_silent_database_is_charged_nothing(
    alias: str, toys: Toys, monkeypatch: pytest.MonkeyPatch, count: int, event_type: str
) -> None:
    """No connection is lost: the server is only as slow as one that is frozen, or behind a network that is."""
    ids = published(alias, count, key=str, event_type=event_type)
    toys.time_limits[event_type] = LIMIT
    presence = Presence(service=SERVICE, role=CONSUMER, worker_id="witness", using=alias, ttl=TTL)
    with proxied(alias, monkeypatch) as proxy:
        connections[alias].close()
        heartbeat = Heartbeat(presence, interval=timedelta(seconds=0.2))
        consumer = factories.consumer(alias, toys, heartbeat=heartbeat)
        heartbeat.start()
        healing: list[threading.Timer] = []

        def wait_in_silence(deliveries: Sequence[Delivery[Any]]) -> None:
            if not healing and any(each.outbox_id == ids[0] for each in deliveries):
                proxy.hold()
                healing.append(threading.Timer(SILENT_S, proxy.heal))
                healing[0].start()
                execute(alias, "SELECT 1")

        toys.before = wait_in_silence
        see_through(alias, consumer, ids)
        first = get(alias, ids[0])
        make_due(alias)
        see_through(alias, consumer, ids)
        heartbeat.close()
        connections[alias].close()

    assert first.retry_count == 0
    assert statuses(alias) == dict.fromkeys(ids, "consumed")
    assert [get(alias, each).retry_count for each in ids] == [0] * count
    assert sorted(effect_ids(alias)) == ids


def test_handler_that_is_late_in_a_silence_is_interrupted_and_dies_of_many_in_a_row(alias: str, toys: Toys) -> None:
    [row_id] = published(alias, 1)
    consumer = factories.consumer(alias, toys, witness=SilentWitness())
    _let_hang(toys)

    for _ in range(MAX_INTERRUPTIONS + 1):
        see_through(alias, consumer, [row_id])
        make_due(alias)

    found = get(alias, row_id)
    assert (found.status, found.error_class, found.retry_count) == ("dead", "TooManyInterruptionsError", 0)


def test_silence_that_is_shorter_than_what_a_handler_was_late_excuses_nothing(alias: str, toys: Toys) -> None:
    [row_id] = published(alias, 1)
    witness = SilentWitness()
    witness.silent_for = 0.001
    consumer = factories.consumer(alias, toys, witness=witness)
    _let_hang(toys)

    see_through(alias, consumer, [row_id])

    found = get(alias, row_id)
    assert (found.error_class, found.retry_count) == ("HandlerTimeoutError", 1)


def _let_hang(toys: Toys) -> None:
    deadline_s = 40

    def loop(_deliveries: Sequence[Delivery[Any]]) -> None:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            pass

    toys.before = loop
    toys.time_limits[NOTE] = timedelta(seconds=0.3)
