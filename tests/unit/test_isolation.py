"""Finding by whom a batch fails: the first bad one of each key, in few calls, and the effects of all others stay.

On SQLite: what each database makes of a lost lock or connection is in tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from math import ceil, log2
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.utils import DatabaseError, IntegrityError, OperationalError
from hypothesis import given
from hypothesis import strategies as st

from outbox.consumer.call_failures import CallFailedError, Deliveries
from outbox.consumer.isolation import HandlerCalls, LockBudget, Ran
from outbox.consumer.planning import Readable
from outbox.coordination.database_errors import ErrorKind
from outbox.declarations.handlers import Delivery, Handler
from outbox.exceptions import (
    FailedDeliveries,
    HandlerExitError,
    TransactionEndedError,
    UndoneEffectsError,
    UnfinishedCallError,
)
from tests.factories import WATCHDOG
from tests.properties import bounded
from tests.toys import ManualClock, ToyEffect, effect_ids

pytestmark = pytest.mark.parametrize("database_alias", ["default"], indirect=True)


class BadEventError(Exception):
    """What the handler of a bad event raises."""


class Service:
    """Handlers that write an effect for each event and fail by the bad ones, and the transaction around them."""

    def __init__(self, alias: str, bad: Sequence[int] | set[int] = (), *, names: bool = False) -> None:
        self.alias, self.bad, self.names = alias, set(bad), names
        self.clock, self.locks = ManualClock(), LockBudget()
        self.calls: list[list[int]] = []
        self.single = Handler(lambda delivery: self._act([delivery]), batch=False)
        self.many = Handler(self._act, batch=True)
        self.before: Callable[[Deliveries], object] = lambda _deliveries: None
        self.after: Callable[[Deliveries], object] = lambda _deliveries: None
        ToyEffect.objects.using(alias).all().delete()

    def readable(self, row_id: int, key: str = "k", *, handler: Handler | None = None) -> Readable:
        delivery: Delivery[Any] = Delivery(
            outbox_id=row_id,
            event_id=str(row_id),
            event_type="toy",
            event_version="v1",
            message_key=key,
            aggregate_id="",
            payload=None,
            attempt=1,
            database=self.alias,
        )
        return Readable(delivery, handler or self.single)

    def run(self, readables: Sequence[Readable], *, in_savepoints: bool = True, budget_s: float = 1000.0) -> Ran:
        with transaction.atomic(using=self.alias):
            calls = HandlerCalls(
                self.alias,
                watchdog=WATCHDOG,
                time_limit=lambda _event_type: timedelta(seconds=60),
                clock=self.clock,
                budget=timedelta(seconds=budget_s),
                locks=self.locks,
                guards_hooks=True,
                on_hung=lambda _deliveries: None,
            )
            return calls.run(readables, in_savepoints=in_savepoints)

    def _act(self, deliveries: Deliveries) -> None:
        assert deliveries, "nobody is called for nothing"
        ids = [each.outbox_id for each in deliveries]
        self.calls.append(ids)
        self.clock.advance(1)
        self.before(deliveries)
        ToyEffect.objects.using(self.alias).bulk_create(
            [
                ToyEffect(outbox_id=each.outbox_id, event_type="toy", message_key=each.message_key, number=0, attempt=1)
                for each in deliveries
            ]
        )
        failed = [each for each in deliveries if each.outbox_id in self.bad]
        if failed:
            raise FailedDeliveries(failed) if self.names else BadEventError(f"among {ids}")
        self.after(deliveries)


def ids_of(deliveries: Sequence[Delivery[Any]]) -> list[int]:
    return [each.outbox_id for each in deliveries]


# --- by whom it fails ----------------------------------------------------------------------------------------------

batches = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=24)


@pytest.mark.parametrize("names", [False, True], ids=["bisected", "named by the handler"])
def test_the_first_bad_one_of_each_key_fails_and_nobody_overtakes_it(alias: str, names: bool) -> None:
    @bounded(60)
    @given(batches, st.data())
    def check(batch: list[tuple[str, bool]], data: st.DataObject) -> None:
        ids = list(range(1, len(batch) + 1))
        keys = {row_id: key for row_id, (key, _) in zip(ids, batch, strict=True)}
        service = Service(alias, data.draw(st.sets(st.sampled_from(ids))), names=names)

        ran = service.run(
            [
                service.readable(row_id, key, handler=service.many if many else service.single)
                for row_id, (key, many) in zip(ids, batch, strict=True)
            ]
        )

        first_bad: dict[str, int] = {}
        for row_id in sorted(service.bad):
            first_bad.setdefault(keys[row_id], row_id)
        assert sorted(ids_of(ran.failed)) == sorted(first_bad.values())
        behind = [row_id for row_id in ids if row_id > first_bad.get(keys[row_id], row_id)]
        assert sorted(ids_of(ran.behind)) == behind
        assert not ran.undecided + ran.not_begun + ran.contended
        good = [row_id for row_id in ids if row_id not in behind and row_id not in first_bad.values()]
        assert ran.left() == set(ids) - set(good)
        for key in set(keys.values()):
            assert effect_ids(alias, key=key) == [each for each in good if keys[each] == key], "each once, in order"

    check()


def test_whatever_ends_a_transaction_early_no_event_has_its_effect_behind_one_that_has_none(alias: str) -> None:
    """Use up the budget of time or of lock waits after any number of calls."""

    @bounded(80)
    @given(batches, st.data(), st.integers(0, 8), st.none() | st.integers(0, 8))
    def check(batch: list[tuple[str, bool]], data: st.DataObject, budget_s: int, locked_at: int | None) -> None:
        ids = list(range(1, len(batch) + 1))
        keys = {row_id: key for row_id, (key, _) in zip(ids, batch, strict=True)}
        service = Service(alias, data.draw(st.sets(st.sampled_from(ids), max_size=4)))

        def use_up_locks(_deliveries: Deliveries) -> None:
            if locked_at is not None and len(service.calls) > locked_at:
                service.locks.left_s = 0.0

        service.before = use_up_locks
        ran = service.run(
            [
                service.readable(row_id, key, handler=service.many if many else service.single)
                for row_id, (key, many) in zip(ids, batch, strict=True)
            ],
            budget_s=budget_s,
        )

        parts = [ran.failed, ran.behind, ran.undecided, ran.not_begun, ran.contended]
        left = [row_id for part in parts for row_id in ids_of(part)]
        done = effect_ids(alias)
        assert sorted(left + done) == ids, "each is in one place"
        assert service.calls, "what comes first is always tried, or nothing would ever end"
        assert len(service.calls) <= max(1, budget_s)
        for key in set(keys.values()):
            effects = [each for each in done if keys[each] == key]
            assert effects == sorted(effects)
            assert max(effects, default=0) < min((each for each in left if keys[each] == key), default=len(ids) + 1)

    check()


@pytest.mark.parametrize("size", [2, 3, 17, 500])
def test_one_bad_event_of_a_list_costs_few_calls(alias: str, size: int) -> None:
    for bad in sorted({1, 2, size // 2 + 1, size}):
        service = Service(alias, {bad})
        ran = service.run([service.readable(each, f"k{each}", handler=service.many) for each in range(1, size + 1)])

        assert ids_of(ran.failed) == [bad]
        assert len(service.calls) <= 1 + 2 * ceil(log2(size))


def test_a_list_handler_that_names_what_failed_is_called_twice(alias: str) -> None:
    service = Service(alias, {3, 7, 400}, names=True)

    ran = service.run([service.readable(each, f"k{each}", handler=service.many) for each in range(1, 501)])

    assert ids_of(ran.failed) == [3, 7, 400]
    assert list(map(len, service.calls)) == [500, 497]


def test_names_of_deliveries_that_the_call_did_not_have_are_no_names(alias: str) -> None:
    service = Service(alias, {2}, names=True)
    strangers = service.readable(99).delivery

    def name_a_stranger(deliveries: Deliveries) -> None:
        if len(deliveries) > 1:
            raise FailedDeliveries([strangers])

    service.before = name_a_stranger
    ran = service.run([service.readable(each, f"k{each}", handler=service.many) for each in range(1, 5)])

    assert ids_of(ran.failed) == [2], "it was bisected"
    assert effect_ids(alias) == [1, 3, 4]


def test_handlers_of_single_events_are_called_once_each_whoever_fails(alias: str) -> None:
    service = Service(alias, {5, 9})

    ran = service.run([service.readable(each, f"k{each}") for each in range(1, 13)])

    assert service.calls == [[each] for each in range(1, 13)]
    assert ids_of(ran.failed) == [5, 9]


def test_without_savepoints_the_first_that_fails_ends_the_transaction_and_is_named(alias: str) -> None:
    service = Service(alias, {2, 3})

    with pytest.raises(CallFailedError) as raised:
        service.run([service.readable(each, f"k{each}") for each in range(1, 5)], in_savepoints=False)

    assert ids_of(raised.value.named) == [2]
    assert isinstance(raised.value.error, BadEventError)
    assert service.calls == [[1], [2]]
    assert effect_ids(alias) == []


def test_without_savepoints_what_has_not_begun_in_time_is_left(alias: str) -> None:
    service = Service(alias)

    ran = service.run([service.readable(each) for each in range(1, 6)], in_savepoints=False, budget_s=2)

    assert effect_ids(alias) == [1, 2]
    assert ids_of(ran.not_begun) == [3, 4, 5]


def test_a_list_that_could_not_be_bisected_in_time_is_undecided_and_not_charged(alias: str) -> None:
    service = Service(alias, {8})

    ran = service.run(
        [service.readable(each, f"k{each}", handler=service.many) for each in range(1, 9)]
        + [service.readable(9, "k9")],
        budget_s=2,
    )

    assert service.calls == [[*range(1, 9)], [1, 2, 3, 4]]
    assert ran.failed == []
    assert ids_of(ran.undecided) == [5, 6, 7, 8]
    assert ids_of(ran.not_begun) == [9]
    assert effect_ids(alias) == [1, 2, 3, 4]


def test_nothing_is_tried_when_all_the_waiting_for_locks_is_used_up(alias: str) -> None:
    service = Service(alias)
    service.locks.left_s = 0.05

    ran = service.run([service.readable(each) for each in range(1, 4)])

    assert ids_of(ran.contended) == [1, 2, 3]
    assert service.calls == []


# --- what a call that returned does not say -----------------------------------------------------------------------


def swallow_a_rollback(deliveries: Deliveries) -> None:
    with suppress(BadEventError), transaction.atomic(using=deliveries[0].database, savepoint=False):
        raise BadEventError


def ask_for_a_rollback(deliveries: Deliveries) -> None:
    transaction.set_rollback(True, using=deliveries[0].database)


def commit_by_a_statement(deliveries: Deliveries) -> None:
    with connections[deliveries[0].database].cursor() as cursor:
        cursor.execute("/* done */ COMMIT")


UNDOING = {
    "a swallowed rollback": (swallow_a_rollback, UndoneEffectsError),
    "set_rollback": (ask_for_a_rollback, UndoneEffectsError),
    "COMMIT": (commit_by_a_statement, TransactionEndedError),
    "sys.exit": (lambda _: exit(3), HandlerExitError),
    "a cancellation": (lambda _: (_ for _ in ()).throw(asyncio.CancelledError), HandlerExitError),
}


@pytest.mark.parametrize(("undo", "reason"), UNDOING.values(), ids=UNDOING.keys())
def test_an_event_whose_handler_undoes_effects_fails_alone(
    alias: str, undo: Callable[[Deliveries], object], reason: type[Exception]
) -> None:
    service = Service(alias)
    service.after = lambda deliveries: undo(deliveries) if ids_of(deliveries) == [2] else None
    readables = [service.readable(each, f"k{each}") for each in range(1, 4)]

    with pytest.raises(CallFailedError) as raised:
        service.run(readables, in_savepoints=False)
    assert isinstance(raised.value.error, reason)
    assert effect_ids(alias) == []

    ran = service.run(readables)
    assert ids_of(ran.failed) == [2]
    assert effect_ids(alias) == [1, 3]


def swallow(error: Exception, alias: str) -> None:
    """Do what ``save()`` and ``except`` around it do."""
    with suppress(type(error)), transaction.mark_for_rollback_on_error(using=alias):
        raise error


@pytest.mark.parametrize("goes_on", [False, True], ids=["returns", "goes on"])
def test_what_a_handler_swallowed_is_told_and_counts(alias: str, goes_on: bool) -> None:
    """A lost lock is no attempt, also where the handler hides it behind the error of its next statement."""
    service = Service(alias)
    for error, kind in (
        (IntegrityError("UNIQUE constraint failed: orders.number"), ErrorKind.PERMANENT),
        (OperationalError("database is locked"), ErrorKind.CONFLICT),
    ):
        if goes_on:
            service.before = lambda _deliveries, error=error: swallow(error, alias)
        else:
            service.after = lambda _deliveries, error=error: swallow(error, alias)
        with pytest.raises(CallFailedError) as raised:
            service.run([service.readable(1)], in_savepoints=False)

        assert raised.value.kind is kind
        assert isinstance(raised.value.error, UndoneEffectsError)
        assert f"swallowed {type(error).__name__}: {error}" in str(raised.value.error)


def test_an_event_is_not_told_or_excused_by_what_another_one_swallowed_before(alias: str) -> None:
    """Django remembers the last error of that kind for as long as its connection object lives."""
    service = Service(alias)
    service.after = lambda _deliveries: swallow(OperationalError("database is locked"), alias)
    with pytest.raises(CallFailedError):
        service.run([service.readable(1)], in_savepoints=False)
    service.after = ask_for_a_rollback

    with pytest.raises(CallFailedError) as raised:
        service.run([service.readable(2)], in_savepoints=False)

    assert raised.value.kind is ErrorKind.PERMANENT
    assert "set_rollback(True)" in str(raised.value.error)


def test_a_caught_error_of_another_call_is_no_reason(alias: str) -> None:
    service = Service(alias)

    def fail_in_a_block_of_its_own(deliveries: Deliveries) -> None:
        if ids_of(deliveries) == [1]:
            with suppress(DatabaseError), transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        else:
            ask_for_a_rollback(deliveries)

    service.after = fail_in_a_block_of_its_own
    ran = service.run([service.readable(1, "a"), service.readable(2, "b")])
    assert effect_ids(alias) == [1], "who catches it in a block of its own goes on"
    assert ids_of(ran.failed) == [2]

    with pytest.raises(CallFailedError) as raised:
        service.run([service.readable(1, "a"), service.readable(2, "b")], in_savepoints=False)
    assert "no_such_table" not in str(raised.value.error)


def test_a_rollback_behind_djangos_back_is_found(alias: str) -> None:
    """No account of Django's says it; the driver's does, and where that has none the savepoint that is gone."""
    service = Service(alias)
    service.after = lambda _deliveries: connections[alias].connection.execute("ROLLBACK")

    with pytest.raises(CallFailedError) as failed:
        service.run([service.readable(1)], in_savepoints=False)

    assert isinstance(failed.value.error, UndoneEffectsError)
    assert "is not open any more" in str(failed.value.error)

    assert effect_ids(alias) == []


async def coroutine() -> None:
    raise AssertionError("nobody waits for it")


def generator() -> Iterator[None]:
    raise AssertionError("nobody runs it")
    yield


async def asynchronous_generator() -> Any:
    raise AssertionError("nobody runs it")
    yield


UNFINISHED: list[Callable[[], object]] = [
    coroutine,
    generator,
    asynchronous_generator,
    Future,
    lambda: map(print, "ab"),
]


@pytest.mark.parametrize("make", UNFINISHED)
@pytest.mark.filterwarnings("error")
def test_what_nobody_runs_or_waits_for_is_no_success(alias: str, make: Callable[[], object]) -> None:
    service = Service(alias)
    lazy = Handler(lambda _delivery: make(), batch=False)

    ran = service.run([service.readable(1, "a", handler=lazy), service.readable(2, "b")])

    assert ids_of(ran.failed) == [1]
    assert effect_ids(alias) == [2]
    with pytest.raises(CallFailedError) as raised:
        service.run([service.readable(1, handler=lazy)], in_savepoints=False)
    assert isinstance(raised.value.error, UnfinishedCallError)


@pytest.mark.parametrize("result", [None, 0, "done", [1], {"a": 1}, object()])
def test_what_a_handler_returns_besides_means_nothing(alias: str, result: object) -> None:
    service = Service(alias)

    assert service.run([service.readable(1, handler=Handler(lambda _: result, batch=False))]) == Ran()


def test_a_person_who_interrupts_is_not_an_error_of_an_event(alias: str) -> None:
    service = Service(alias)

    def interrupt(_deliveries: Deliveries) -> None:
        raise KeyboardInterrupt

    service.before = interrupt
    for in_savepoints in (False, True):
        with pytest.raises(KeyboardInterrupt):
            service.run([service.readable(1, handler=service.many)], in_savepoints=in_savepoints)
    assert effect_ids(alias) == []
