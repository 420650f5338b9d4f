"""Pruning deletes what is done with and old, nothing else, in small steps beside running workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import ProgrammingError, connections, transaction
from django.test.utils import CaptureQueriesContext

from agent_events.agent.models import AgentOutboxMessage
from outbox import signals
from outbox.coordination.shutdown import StopFlag
from outbox.fields import UtcNow
from outbox.models import RejectedRecord
from outbox.operations.pruning import Pruning
from outbox.storage.repository import OutboxRepository
from tests import factories
from tests.toys import ManualClock, RecordingStop, Toys
from tests.transactions import deadlock_of, kill_own_connection
from tests.waiting import wait_until

WEEK = timedelta(days=7)


def old(alias: str, count: int, *, age: timedelta = timedelta(days=8), status: str = "consumed") -> list[int]:
    """Insert rows that were made, and consumed, ``age`` ago."""
    ids = factories.rows(alias, count, key=str, status=status)
    then = factories.database_now(alias) - age
    factories.change(alias, ids, created_at=then, consumed_at=then if status == "consumed" else None)
    return ids


def pruning_of_agent(stop: StopFlag, *, batch_size: int = 10, told: list[int] | None = None) -> Pruning:
    return Pruning(factories.repository(), batch_size, stop, [].append if told is None else told.append)


def rejected(alias: str, count: int, *, resolved_ago: timedelta | None, service: str = "agent") -> None:
    resolved_at = None if resolved_ago is None else factories.database_now(alias) - resolved_ago
    RejectedRecord.objects.using(alias).bulk_create(
        RejectedRecord(
            service=service,
            topic=f"{service}.{resolved_ago}",
            partition=0,
            offset=offset,
            digest="d",
            headers="[]",
            reason="r",
            received_at=UtcNow(),
            resolved_at=resolved_at,
        )
        for offset in range(count)
    )


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("outbox_prune", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


# --- what goes and what stays ------------------------------------------------------------------------------------


def test_only_old_consumed_rows_go(alias: str, stop: StopFlag) -> None:
    kept = {status: old(alias, 3, status=status) for status in ("pending", "published", "dead")}
    old(alias, 25)
    kept["consumed"] = old(alias, 4, age=timedelta(days=6))

    assert pruning_of_agent(stop).consumed(older_than=WEEK) == 25

    assert sorted(factories.statuses(alias)) == sorted(id_ for ids in kept.values() for id_ in ids)


def test_row_consumed_lately_stays_however_old_it_is(alias: str, stop: StopFlag) -> None:
    (late,) = old(alias, 1)
    factories.change(alias, late, consumed_at=UtcNow())
    old(alias, 3)
    assert pruning_of_agent(stop).consumed(older_than=WEEK) == 3
    assert list(factories.statuses(alias)) == [late]


def test_counting_deletes_nothing_and_agrees_with_deleting(alias: str, stop: StopFlag) -> None:
    old(alias, 12)
    old(alias, 3, age=timedelta(days=1))
    prune = pruning_of_agent(stop)
    assert prune.count_consumed(older_than=WEEK) == 12
    assert len(factories.statuses(alias)) == 15
    assert prune.consumed(older_than=WEEK) == 12
    assert prune.count_consumed(older_than=WEEK) == 0


def test_resolved_rejected_records_go_and_open_ones_stay(alias: str, stop: StopFlag) -> None:
    rejected(alias, 25, resolved_ago=timedelta(days=30))
    rejected(alias, 2, resolved_ago=timedelta(days=1))
    rejected(alias, 3, resolved_ago=None)
    rejected(alias, 4, resolved_ago=timedelta(days=30), service="task")
    prune = pruning_of_agent(stop)
    assert prune.count_rejected(older_than=WEEK) == 25
    assert prune.rejected(older_than=WEEK) == 25
    left = RejectedRecord.objects.using(alias)
    assert (left.filter(service="agent").count(), left.filter(service="task").count()) == (5, 4)


# --- small steps -------------------------------------------------------------------------------------------------


def test_each_batch_is_bounded_and_commits_by_itself(alias: str, stop: StopFlag) -> None:
    old(alias, 35)
    seen: list[int] = []
    left: list[int] = []

    def tell(deleted: int) -> None:
        assert not connections[alias].in_atomic_block
        seen.append(deleted)
        left.append(len(factories.statuses(alias)))

    assert Pruning(factories.repository(), 10, stop, tell).consumed(older_than=WEEK) == 35
    assert seen[:4] == [10, 20, 30, 35]
    assert left[:4] == [25, 15, 5, 0]


@pytest.mark.parametrize(("busy_share", "rest_s"), [(1.0, None), (0.5, 0.2), (0.25, 0.6), (0.01, 1.0)])
def test_it_rests_between_batches_in_proportion(
    alias: str, stop: RecordingStop, busy_share: float, rest_s: float | None
) -> None:
    """Each batch takes 0.2 s by this clock; behind the last one nobody waits."""
    old(alias, 35)
    clock = ManualClock()
    pruning = Pruning(
        factories.repository(), 10, stop, lambda _deleted: clock.advance(0.2), busy_share=busy_share, clock=clock
    )

    assert pruning.consumed(older_than=WEEK) == 35
    assert [round(pause.total_seconds(), 3) for pause in stop.pauses] == ([] if rest_s is None else [rest_s] * 3)


def test_stopping_finishes_the_batch_and_the_next_run_goes_on(alias: str) -> None:
    old(alias, 35)
    stop = StopFlag()

    def stop_after_two(deleted: int) -> None:
        if deleted >= 20:
            stop.set()

    assert Pruning(factories.repository(), 10, stop, stop_after_two).consumed(older_than=WEEK) == 20
    assert len(factories.statuses(alias)) == 15
    assert pruning_of_agent(StopFlag()).consumed(older_than=WEEK) == 15


def test_young_rows_are_not_read_to_the_end(alias: str, stop: StopFlag) -> None:
    old(alias, 10)
    old(alias, 200, age=timedelta(0))
    with CaptureQueriesContext(connections[alias]) as queries:
        pruning_of_agent(stop).consumed(older_than=WEEK)
    windows = [query for query in queries.captured_queries if "ORDER BY id LIMIT" in query["sql"]]
    assert len(windows) == 2


def test_batch_that_lost_its_locks_is_done_again(
    alias: str, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(alias, 15)
    failures = iter([deadlock_of(alias) for _ in range(3)])
    whole = OutboxRepository.prune

    def fail_at_times(self: OutboxRepository, **arguments: Any) -> Any:
        step = whole(self, **arguments)
        if (error := next(failures, None)) is not None:
            raise error
        return step

    monkeypatch.setattr(OutboxRepository, "prune", fail_at_times)
    assert pruning_of_agent(stop).consumed(older_than=WEEK) == 15
    assert factories.statuses(alias) == {}
    assert stop.pauses == sorted(stop.pauses)
    assert len(stop.pauses) == 3, "each failure is followed by a pause"


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
@pytest.mark.parametrize("moment", ["before the batch", "before its commit"])
def test_connection_that_breaks_makes_it_wait_and_no_row_is_passed_over(
    alias: str, stop: RecordingStop, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old(alias, 25)
    whole, told = OutboxRepository.prune, list[int]()

    def prune(self: OutboxRepository, **arguments: Any) -> Any:
        is_second = arguments["after_id"] > 0 and not stop.pauses
        if is_second and moment == "before the batch":
            kill_own_connection(alias)
        step = whole(self, **arguments)
        if is_second:
            kill_own_connection(alias)
        return step

    monkeypatch.setattr(OutboxRepository, "prune", prune)
    assert pruning_of_agent(stop, told=told).consumed(older_than=WEEK) == 25
    assert factories.statuses(alias) == {}
    assert told == [10, 20, 25]
    assert len(stop.pauses) == 1


def test_statement_that_the_database_refuses_ends_it(
    alias: str, stop: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_args: Any, **_kwargs: Any) -> Any:
        raise ProgrammingError(1054, "Unknown column")

    monkeypatch.setattr(OutboxRepository, "prune", wrong)
    with pytest.raises(ProgrammingError):
        pruning_of_agent(stop).consumed(older_than=WEEK)


# --- beside others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_locked_rows_are_passed_over(alias: str, stop: StopFlag) -> None:
    ids = old(alias, 10)
    locked = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with transaction.atomic(using=alias):
            factories.repository().lock(ids[3:5], max_length=100)
            locked.set()
            release.wait(20)
        connections[alias].close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert locked.wait(10)
        assert pruning_of_agent(stop).consumed(older_than=WEEK) == 8
        assert holder.is_alive(), "it did not wait for the locks"
    finally:
        release.set()
        holder.join()
    assert list(factories.statuses(alias)) == ids[3:5]
    assert pruning_of_agent(stop).consumed(older_than=WEEK) == 2


@pytest.fixture
def contention() -> Iterator[list[str]]:
    """Collect what held up a batch of pruning."""
    noted: list[str] = []

    def note(sender: str, error: str, **_: Any) -> None:
        noted.append(error)

    signals.outage.connect(note)
    yield noted
    signals.outage.disconnect(note)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_pruning_beside_consumers_loses_no_lock_and_no_event(alias: str, toys: Toys, contention: list[str]) -> None:
    """Everything is pruned as soon as it is consumed, by two pruners at once, while consumers are at work."""
    ids = factories.rows(alias, 900, key=lambda number: str(number % 50), status="published")
    records = factories.records_of(alias, ids)
    done = StopFlag()
    errors: list[Exception] = []
    deleted: list[int] = []
    consumers = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - carried to the test's own thread
                errors.append(error)
            finally:
                connections[alias].close()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def consume(part: int) -> None:
        consumer = factories.consumer(alias, toys)
        consumers.append(consumer)
        mine = [record for record in records if int(record.key or b"") % 3 == part]
        for start in range(0, len(mine), 25):
            consumer.handle(mine[start : start + 25])

    def prune() -> None:
        while not done.is_set:
            deleted.append(pruning_of_agent(StopFlag(), batch_size=40).consumed(older_than=timedelta(0)))

    pruners = [guarded(prune) for _ in range(2)]
    for thread in [guarded(lambda part=part: consume(part)) for part in range(3)]:  # type: ignore[misc]
        thread.join()
    wait_until(lambda: errors or not factories.statuses(alias), timeout=30, message="everything pruned")
    done.set()
    for thread in pruners:
        thread.join()

    assert errors == []
    assert sum(deleted) == 900
    assert sum(consumer.totals.consumed for consumer in consumers) == 900
    assert sum(consumer.totals.waited for consumer in consumers) == 0
    assert contention == []


# --- the command -------------------------------------------------------------------------------------------------


def test_command_says_what_it_deleted_of_each_service(alias: str) -> None:
    old(alias, 5)
    rejected(alias, 3, resolved_ago=timedelta(days=40))
    assert run("agent", "task", "--older-than", "7d", "--rejected-older-than", "30d") == (
        "agent: deleted 5 consumed events older than 7d\n"
        "agent: deleted 3 resolved records older than 30d\n"
        "task: deleted 0 consumed events older than 7d\n"
        "task: deleted 0 resolved records older than 30d\n"
    )


def test_command_takes_all_services_and_a_week_when_nothing_is_said(alias: str) -> None:
    lines = run().splitlines()
    assert len(lines) == 5
    assert all(line.endswith("deleted 0 consumed events older than 7d") for line in lines)


def test_dry_run_deletes_nothing(alias: str) -> None:
    old(alias, 5)
    rejected(alias, 3, resolved_ago=timedelta(days=40))
    said = run("agent", "--dry-run", "--rejected-older-than", "30d")
    assert "agent: would delete 5 consumed events" in said
    assert "agent: would delete 3 resolved records" in said
    assert AgentOutboxMessage.objects.using(alias).count() == 5
    assert RejectedRecord.objects.using(alias).count() == 3


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agnet"], "known services: active-scheduler, agent"),
        (["--older-than", "7"], "is not a length of time"),
        (["--older-than", "0d"], "is not a length of time"),
        (["--batch-size", "0"], "is not a whole number from 1 to"),
    ],
)
def test_wrong_arguments_are_explained(alias: str, arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        run(*arguments)


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_progress_is_drawn_on_a_terminal_only(alias: str) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    old(alias, 25)
    terminal, pipe = Terminal(), StringIO()
    call_command("outbox_prune", "agent", "--batch-size", "10", "--busy-share", "1", stdout=terminal)
    assert "25/25" in terminal.getvalue()
    assert "agent: deleted 25 consumed events older than 7d" in terminal.getvalue()
    old(alias, 25)
    call_command("outbox_prune", "agent", stdout=pipe)
    assert pipe.getvalue() == "agent: deleted 25 consumed events older than 7d\n"
