"""What is not the event's doing, or happens behind its commit: hooks, faults of the library; and other databases."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction

from outbox import Delivery, signals
from outbox.consumer.loop import Consumer
from outbox.storage.rejections import RejectionStore
from outbox.storage.repository import OutboxRepository
from smartflow.database_url import database
from tests import factories
from tests.consumers import deliver, published
from tests.factories import get, record, records_of, statuses
from tests.integration.misbehaving import check_that_these_failed_alone
from tests.toys import BULK, NOTE, Toys, effect_ids

# --- on_commit hooks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("of the hook"), SystemExit(3), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_hook_that_raises_is_logged_and_changes_nothing(
    alias: str,
    toys: Toys,
    consumer: Consumer,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    event_type: str,
) -> None:
    ids = published(alias, 4, key=str, event_type=event_type)
    ran: list[int] = []
    counts: list[int] = []

    def hook(row_id: int) -> Callable[[], None]:
        def run() -> None:
            ran.append(row_id)
            if row_id in ids[:2]:
                raise error

        return run

    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        for each in deliveries:
            transaction.on_commit(hook(each.outbox_id), using=alias)

    def count(sender: object, *, count: int, **_: object) -> None:
        counts.append(count)

    toys.before = before
    signals.consumed.connect(count)
    try:
        deliver(alias, consumer, ids)
        deliver(alias, consumer, ids)
    finally:
        signals.consumed.disconnect(count)

    assert ran == ids, "each once, and those behind the one that raised too"
    assert sum(counts) == consumer.totals.consumed == 4
    assert (consumer.totals.retried, consumer.totals.dead, consumer.totals.duplicates) == (0, 0, 4)
    assert effect_ids(alias) == ids
    assert caplog.text.count("on_commit hook failed, its event is consumed") == 2


def test_interruption_by_a_person_in_a_hook_is_passed_on(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1)

    def hook() -> None:
        raise KeyboardInterrupt

    toys.before = lambda _deliveries: transaction.on_commit(hook, using=alias)
    with pytest.raises(KeyboardInterrupt):
        deliver(alias, consumer, [row_id])

    assert get(alias, row_id).status == "consumed"


def test_hooks_of_an_event_that_fails_do_not_run(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 4, key=str)
    ran: list[int] = []

    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        row_id = deliveries[0].outbox_id
        transaction.on_commit(lambda: ran.append(row_id), using=alias)

    toys.before = before
    toys.fail(ids[1], ValueError("no"))
    deliver(alias, consumer, ids)

    assert sorted(ran) == [ids[0], ids[2], ids[3]]


# --- faults of the library ---------------------------------------------------------------------------------------


class FaultError(Exception):
    """Something that the library does wrong."""


def _let_fail(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fails: Callable[[Any], bool]) -> None:
    original = getattr(owner, name)

    def failing(self: Any, argument: Any, *rest: Any) -> Any:
        if fails(argument):
            raise FaultError(name)
        return original(self, argument, *rest)

    monkeypatch.setattr(owner, name, failing)


def _of_row(name: str, row_id: int) -> Callable[[Any], bool]:
    if name == "predecessors":
        return lambda locked: any(each.id == row_id for each in locked)
    return lambda ids: row_id in ids


@pytest.mark.parametrize("name", ["predecessors", "mark_consumed"])
@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_fault_of_the_library_that_one_row_runs_into_is_charged_to_nobody(
    alias: str,
    toys: Toys,
    consumer: Consumer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    event_type: str,
) -> None:
    ids = published(alias, 6, key=str, event_type=event_type)
    records = records_of(alias, ids)
    _let_fail(monkeypatch, OutboxRepository, name, _of_row(name, ids[3]))

    assert consumer.handle(records) == [records[3]]

    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {ids[3]: "published"}
    assert sorted(effect_ids(alias)) == [each for each in ids if each != ids[3]]
    assert (get(alias, ids[3]).retry_count, get(alias, ids[3]).interruptions) == (0, 0)
    assert "internal error, its records stay uncommitted" in caplog.text
    monkeypatch.undo()
    assert consumer.handle([records[3]]) == []
    assert sorted(effect_ids(alias)) == ids


@pytest.mark.parametrize("name", ["predecessors", "mark_consumed", "lock"])
def test_fault_of_the_library_that_nothing_gets_past_is_raised(
    alias: str, toys: Toys, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ids = published(alias, 30, key=str)
    if name == "lock":
        monkeypatch.setattr(OutboxRepository, name, _raise)
    else:
        _let_fail(monkeypatch, OutboxRepository, name, lambda _argument: True)

    with pytest.raises(FaultError):
        consumer.handle(records_of(alias, ids))

    assert statuses(alias) == dict.fromkeys(ids, "published")
    assert effect_ids(alias) == []
    assert {(get(alias, each).retry_count, get(alias, each).interruptions) for each in ids} == {(0, 0)}
    monkeypatch.undo()
    assert consumer.handle(records_of(alias, ids)) == []
    assert effect_ids(alias) == ids


def _raise(*_args: Any, **_options: Any) -> Any:
    raise FaultError


def test_fault_in_keeping_rejected_records_stops_no_event(
    alias: str, toys: Toys, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = published(alias, 3, key=str)
    strange = record(b"not an envelope")
    records = records_of(alias, ids)
    _let_fail(monkeypatch, RejectionStore, "add", lambda _rejected: True)

    assert consumer.handle([*records, strange]) == [strange]

    assert effect_ids(alias) == ids
    assert statuses(alias) == dict.fromkeys(ids, "consumed")


# --- other databases ---------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(alias: str) -> Iterator[str]:
    """Add an alias of a database whose server is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = {
        "mysql": f"mysql://nobody:x@127.0.0.1:{port}/nothing",
        "postgresql": f"postgres://nobody:x@127.0.0.1:{port}/nothing",
        "sqlite": "sqlite:////nowhere/at/all.sqlite3",
    }[connections[alias].vendor]
    connections.settings["elsewhere"] = {
        **connections[alias].settings_dict,
        **database(url),
        "TIME_ZONE": None,
        "AUTOCOMMIT": True,
    }
    yield "elsewhere"
    connections["elsewhere"].close()
    del connections["elsewhere"], connections.settings["elsewhere"]


@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("wraps", [False, True], ids=["as-it-is", "in-its-own-words"])
def test_database_of_another_alias_that_is_away_is_the_failure_of_who_uses_it(
    alias: str, toys: Toys, elsewhere: str, event_type: str, wraps: bool
) -> None:
    consumer = factories.consumer(alias, toys)
    ids = published(alias, 5, key=str, event_type=event_type)
    bad = {ids[1], ids[3]}

    def use_it(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id in bad for each in deliveries):
            try:
                connections[elsewhere].cursor()
            except DatabaseError as error:
                if wraps:
                    raise LookupError("nothing found") from error
                raise

    toys.before = use_it
    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "LookupError" if wraps else "OperationalError", "")
