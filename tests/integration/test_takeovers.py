"""Suspicion follows the partition: who takes one over from a worker that did not deregister is careful for a batch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.test.utils import CaptureQueriesContext

from outbox.brokers.base import IncomingRecord
from outbox.consumer.takeovers import Takeovers
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, RELAY, Presence
from outbox.models import Worker
from tests.factories import TTL, database_now
from tests.threads import together
from tests.toys import SERVICE

BATCH = 3


def test_next_records_of_a_dead_workers_partition_are_suspect(alias: str) -> None:
    _worker(alias, "dead", partitions="0-1,5")
    takeovers = _takeovers(alias)

    takeovers.look({1: 1, 2: 2})

    assert takeovers.is_suspect(_record(1))
    assert not takeovers.is_suspect(_record(2))
    assert not takeovers.is_suspect(_record(0)), "not ours"


def test_suspicion_ends_with_as_many_records_as_a_batch_has(alias: str) -> None:
    _worker(alias, "dead", partitions="0-1,5")
    takeovers = _takeovers(alias)
    takeovers.look({0: 1, 1: 2, 2: 3})

    takeovers.passed([_record(1, 0), _record(2, 0), _record(1, 1)])
    assert takeovers.is_suspect(_record(1, 2))
    assert _named(alias, "dead") == "0-1,5"
    takeovers.passed([_record(1, 2), _record(1, 3)])

    assert not takeovers.is_suspect(_record(1, 4))
    assert takeovers.is_suspect(_record(0, 0))
    assert _named(alias, "dead") == "0,5"
    other = _takeovers(alias, "other")
    other.look({1: 7, 0: 8})
    assert not other.is_suspect(_record(1))
    assert other.is_suspect(_record(0))


def test_all_dead_workers_that_name_a_partition_stop_naming_it(alias: str) -> None:
    for name, partitions in (("dead", "0-2"), ("dead too", "1"), ("dead elsewhere", "2")):
        _worker(alias, name, partitions=partitions)
    takeovers = _takeovers(alias)
    takeovers.look({1: 1})

    takeovers.passed([_record(1, offset) for offset in range(BATCH)])

    assert [_named(alias, name) for name in ("dead", "dead too", "dead elsewhere")] == ["0,2", "", "2"]


@pytest.mark.parametrize(
    "columns",
    [
        {"partitions": "1", "age": timedelta(0)},
        {"partitions": "2"},
        {"partitions": ""},
        {"partitions": "1", "role": RELAY},
        {"partitions": "1", "service": "task"},
        {"partitions": "1", "worker_id": "me"},
    ],
    ids=["alive", "other partition", "no partition", "other role", "other service", "myself"],
)
def test_nobody_else_makes_a_partition_suspect(alias: str, columns: dict[str, Any]) -> None:
    _worker(alias, **({"worker_id": "dead"} | columns))
    takeovers = _takeovers(alias)

    takeovers.look({1: 1})

    assert not takeovers.is_suspect(_record(1))


def test_database_is_asked_once_a_new_assignment_and_never_otherwise(alias: str) -> None:
    takeovers = _takeovers(alias)

    with CaptureQueriesContext(connections[alias]) as queries:
        takeovers.look({0: 1, 1: 2})
        assert len(queries) == 1
        takeovers.look({0: 1, 1: 2})
        takeovers.look({0: 1})
        takeovers.passed([_record(0, offset) for offset in range(10)])
        assert len(queries) == 1
        takeovers.look({0: 3})
        assert len(queries) == 2


def test_partition_that_went_and_came_back_is_looked_at_anew(alias: str) -> None:
    takeovers = _takeovers(alias)
    takeovers.look({0: 1, 1: 2})
    _worker(alias, "dead", partitions="0-1")

    takeovers.look({0: 3, 1: 2})

    assert takeovers.is_suspect(_record(0))
    assert not takeovers.is_suspect(_record(1)), "it stayed here all the time"


def test_partition_that_leaves_takes_its_suspicion_along_and_others_keep_theirs(alias: str) -> None:
    _worker(alias, "dead", partitions="0-1")
    takeovers = _takeovers(alias)
    takeovers.look({0: 1, 1: 2})
    takeovers.passed([_record(1, 0)])

    takeovers.look({1: 2})
    takeovers.passed([_record(0, offset) for offset in range(BATCH)])

    assert not takeovers.is_suspect(_record(0))
    assert takeovers.is_suspect(_record(1, 1))
    assert _named(alias, "dead") == "0-1", "its next owner is to know"


def test_database_that_is_away_leaves_nothing_unlooked_at_and_nothing_unstruck(alias: str) -> None:
    _worker(alias, "dead", partitions="1")
    takeovers = _takeovers(alias)

    with connections[alias].execute_wrapper(_away), pytest.raises(OperationalError):
        takeovers.look({1: 1})
    takeovers.look({1: 1})
    assert takeovers.is_suspect(_record(1))

    with connections[alias].execute_wrapper(_away), pytest.raises(OperationalError):
        takeovers.passed([_record(1, offset) for offset in range(BATCH)])
    assert not takeovers.is_suspect(_record(1, BATCH))
    takeovers.passed([])
    assert _named(alias, "dead") == ""


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_heirs_of_one_worker_strike_their_partitions_at_the_same_moment(alias: str) -> None:
    _worker(alias, "dead", partitions="0-5")

    def inherit(partition: int) -> None:
        takeovers = _takeovers(alias, f"heir-{partition}")
        takeovers.look({partition: 1})
        takeovers.passed([_record(partition, offset) for offset in range(BATCH)])

    together(inherit, range(4))

    assert _named(alias, "dead") == "4-5"


def test_worker_that_lives_after_all_says_itself_what_it_holds(alias: str) -> None:
    _worker(alias, "asleep", partitions="1")
    takeovers = _takeovers(alias)
    takeovers.look({1: 1})
    _presence(alias, "asleep", partitions="1").beat()

    takeovers.passed([_record(1, offset) for offset in range(BATCH)])

    assert _named(alias, "asleep") == "1"


def test_worker_that_ends_in_order_leaves_no_suspicion(alias: str) -> None:
    heartbeat = Heartbeat(_presence(alias, "orderly"), interval=timedelta(hours=1))
    heartbeat.start()
    heartbeat.hold([1])
    heartbeat.close()
    takeovers = _takeovers(alias)

    takeovers.look({1: 1})

    assert not takeovers.is_suspect(_record(1))


def _takeovers(alias: str, worker_id: str = "me") -> Takeovers:
    return Takeovers(_presence(alias, worker_id), records=BATCH)


def _presence(alias: str, worker_id: str, *, partitions: str = "") -> Presence:
    presence = Presence(service=SERVICE, role=CONSUMER, worker_id=worker_id, using=alias, ttl=TTL)
    presence.partitions = partitions
    return presence


def _worker(alias: str, worker_id: str, *, age: timedelta = TTL / 2 + timedelta(seconds=1), **columns: Any) -> None:
    values = {"service": SERVICE, "role": CONSUMER, "host": "host", "pid": 1} | columns
    Worker.objects.using(alias).create(worker_id=worker_id, seen_at=database_now(alias) - age, **values)


def _named(alias: str, worker_id: str) -> str:
    return Worker.objects.using(alias).get(pk=worker_id).partitions


def _record(partition: int, offset: int = 0) -> IncomingRecord:
    return IncomingRecord("topic", partition, offset, None, None)


def _away(*_: Any) -> None:
    raise OperationalError("the database is away")
