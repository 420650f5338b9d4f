"""A service whose tables are missing, or whose worker meets a bug, is tried again; it ends nobody else's work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections

from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.shutdown import StopFlag
from outbox.lifecycle import Status
from outbox.registry.catalog import service_models
from outbox.wire.envelope import encode_envelope
from outbox.workers.build import routes_of, run_relays
from tests import factories
from tests.conftest import SERVICES
from tests.consumers import Scripted, published, subscribing
from tests.factories import envelope, get, records_of, rows, status_counts
from tests.relays import MakeRelay, sent_ids
from tests.threads import Threads
from tests.toys import RecordingStop, Toys, effect_ids
from tests.waiting import wait_until

BROKEN = "task"
OTHERS = [service for service in SERVICES if service != BROKEN]


class MendingStop(RecordingStop):
    """Mends what is broken after a number of pauses, and stops when ``is_done``."""

    def __init__(self, mend: Callable[[], None], *, after: int, is_done: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._mend, self._after, self._is_done = mend, after, is_done

    def wait(self, pause: timedelta, *, until: object = None) -> bool:
        super().wait(pause, until=until)
        assert len(self.pauses) < 1000, "the work never went on"
        if len(self.pauses) == self._after:
            self._mend()
        if len(self.pauses) >= self._after and self._is_done():
            self.set()
        return self.is_set


class Unclosable(Scripted):
    """A subscription of a client that is in no known state."""

    def close(self) -> None:
        super().close()
        raise AttributeError("cannot be closed either")


class Ending(Scripted):
    """A subscription whose consumer is asked to stop when there is nothing more."""

    def __init__(self, stop: StopFlag, *script: list[IncomingRecord] | Exception) -> None:
        super().__init__(*script)
        self._stop = stop

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        if not self.script:
            self._stop.set()
        return super().receive(max_records=max_records, timeout=timeout)


def add(alias: str, service: str, count: int = 3) -> None:
    """Write rows that are due into the table of any service."""
    model = service_models()[service]
    for _ in range(count):
        model._default_manager.using(alias).create(
            event_type="toy.note",
            service_name=service,
            topic=f"smartflow.{service}.outbox",
            message_key="k",
            payload=encode_envelope(envelope()).decode(),
        )


def unpublished(alias: str, services: Sequence[str]) -> int:
    return sum(
        service_models()[service]._default_manager.using(alias).exclude(status=Status.PUBLISHED).count()
        for service in services
    )


def rename(alias: str, table: str, name: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {name}")


@contextmanager
def missing(alias: str, service: str = BROKEN) -> Iterator[Callable[[], None]]:
    """Take a service's table away; give what brings it back, which happens at the end in any case."""
    table = service_models()[service]._meta.db_table
    rename(alias, table, f"{table}_gone")
    is_gone = [True]

    def bring_back() -> None:
        if is_gone:
            rename(alias, f"{table}_gone", table)
            is_gone.clear()

    try:
        yield bring_back
    finally:
        bring_back()


def test_relays_of_other_services_go_on_and_the_broken_one_does_when_it_is_mended(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    for service in SERVICES:
        add(alias, service)
    stop, threads, broker = StopFlag(), Threads(), MemoryBroker(partitions=3)
    with caplog.at_level(logging.WARNING, "outbox"), missing(alias) as bring_back:
        threads.start(lambda: run_relays(routes_of([]), broker, stop, once=False))
        try:
            wait_until(lambda: unpublished(alias, OTHERS) == 0, timeout=60)
            wait_until(lambda: f"relay failed, retrying: service={BROKEN}" in caplog.text, timeout=60)
            for service in OTHERS:
                add(alias, service)
            wait_until(lambda: unpublished(alias, OTHERS) == 0, timeout=60, message="the others go on")

            bring_back()
            wait_until(lambda: unpublished(alias, SERVICES) == 0, timeout=60, message="the broken one goes on")
        finally:
            stop.set()
            wait_until(threads.are_all_over, timeout=60)

    threads.check_no_errors()
    assert "are its tables up to date?" in caplog.text
    assert f"relay recovered: service={BROKEN}" in caplog.text
    assert caplog.text.count("Traceback") >= 1
    assert {service for service in OTHERS if f"retrying: service={service} " in caplog.text} == set()


def test_relay_without_its_table_tries_again_and_ends_only_where_a_person_waits(
    alias: str, make_relay: MakeRelay, broker: MemoryBroker, stop: RecordingStop
) -> None:
    ids = rows(alias, 3)
    with missing(alias, "agent") as bring_back:
        with pytest.raises(DatabaseError):
            make_relay().run(stop, once=True)

        make_relay().run(MendingStop(bring_back, after=4, is_done=lambda: status_counts(alias) == {"published": 3}))

    assert sorted(set(sent_ids(broker))) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}


def test_relay_that_meets_a_bug_tries_again_and_ends_only_where_a_person_waits(
    alias: str,
    make_relay: MakeRelay,
    broker: MemoryBroker,
    stop: RecordingStop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = rows(alias, 3)
    relay = make_relay()
    whole = type(relay._repository).mark_published
    bugs = iter([AttributeError("a bug"), AttributeError("a bug")])
    with monkeypatch.context() as patched:

        def mark_published(*args: Any, **kwargs: Any) -> Any:
            for bug in bugs:
                raise bug
            return whole(*args, **kwargs)

        patched.setattr(type(relay._repository), "mark_published", mark_published)
        with pytest.raises(AttributeError):
            relay.run(stop, once=True)
        factories.expire(alias, relay._leases.presence.worker_id)
        make_relay().run(MendingStop(lambda: None, after=1, is_done=lambda: status_counts(alias) == {"published": 3}))

    assert sorted(set(sent_ids(broker))) == ids
    assert "relay failed, retrying: service=agent" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_servers_limit_of_time_for_a_statement_does_not_end_a_relay(
    alias: str, make_relay: MakeRelay, broker: MemoryBroker, stop: RecordingStop, caplog: pytest.LogCaptureFixture
) -> None:
    ids = rows(alias, 3)
    codes = {"mariadb": (1969, "x"), "mysql": (3024, "x"), "postgres": ("canceling statement due to timeout",)}[alias]
    cause = type("Cause", (Exception,), {"sqlstate": "57014"})()
    times = iter(range(2))

    def run_out_of_time(execute: Any, sql: str, *more: Any) -> Any:
        if "agent_outbox_messages" in sql:
            for _ in times:
                raise OperationalError(*codes) from cause
        return execute(sql, *more)

    with caplog.at_level(logging.WARNING, "outbox"), connections[alias].execute_wrapper(run_out_of_time):
        make_relay().run(stop, once=True)

    assert sent_ids(broker) == ids
    assert "database busy, retrying: service=agent worker=relay failures=2" in caplog.text


def test_consumer_without_its_table_tries_again_and_ends_only_where_a_person_waits(
    alias: str, toys: Toys, stop: RecordingStop
) -> None:
    ids = published(alias, 3, key=str)
    records = records_of(alias, ids)
    with missing(alias, "agent") as bring_back:
        with pytest.raises(DatabaseError):
            factories.consumer(alias, toys, subscribe=subscribing(Scripted(records))).run(stop, max_events=3)

        mending = MendingStop(bring_back, after=4)
        # A batch of three has no room for more, so it asks for more only when these are done.
        factories.consumer(alias, toys, subscribe=subscribing(Ending(mending, records)), batch_size=3).run(mending)

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}


def test_consumer_that_meets_a_bug_subscribes_again_and_ends_only_where_a_person_waits(
    alias: str, toys: Toys, stop: RecordingStop, caplog: pytest.LogCaptureFixture
) -> None:
    ids = published(alias, 2, key=str)
    records = records_of(alias, ids)
    first, second = Unclosable(records), Ending(stop, records)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(first, second))
    whole, bugs = consumer.handle, iter([AttributeError("a bug")])

    def handle(received: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        for bug in bugs:
            raise bug
        return whole(received)

    consumer.handle = handle  # type: ignore[method-assign]
    consumer.run(stop)

    assert first.closed
    assert first.committed == [], "what the first gave comes again"
    assert effect_ids(alias) == ids
    assert "consumer failed, retrying: service=agent" in caplog.text
    assert {get(alias, each).retry_count for each in ids} == {0}
    with pytest.raises(AttributeError):
        factories.consumer(alias, toys, subscribe=subscribing(Scripted(AttributeError("a bug")))).run(
            StopFlag(), max_events=1
        )
