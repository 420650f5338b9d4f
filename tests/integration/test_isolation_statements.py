"""Statements that end the transaction are refused; errors in statements count where the database says so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox import Delivery
from outbox.consumer.loop import Consumer
from outbox.storage.repository import OutboxRepository
from tests.consumers import deliver, published
from tests.factories import get, records_of, statuses
from tests.integration.misbehaving import (
    Misbehave,
    check_that_these_failed_alone,
    create_snapshot,
    execute,
    let_misbehave,
)
from tests.toys import BULK, NOTE, Toys, effect_ids


def _executing(sql: str) -> Misbehave:
    def send(alias: str) -> None:
        execute(alias, sql)

    send.__name__ = sql.lower().replace(" ", "_")
    return send


REFUSED = [
    _executing("ROLLBACK"),
    _executing("COMMIT"),
    _executing("BEGIN"),
    _executing("START TRANSACTION"),
]

# --- refused before it is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("misbehave", REFUSED, ids=lambda each: each.__name__)
def test_statement_that_ends_the_transaction_is_refused_and_doubles_nobodys_effect(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave
) -> None:
    ids = published(alias, 6, key=str)
    bad = {ids[2], ids[3]}
    let_misbehave(toys, bad, misbehave)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "TransactionEndedError", "Leave the transaction to the consumer")


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
@pytest.mark.parametrize("sql", ["CREATE TABLE never_made (id INT)", "TRUNCATE TABLE toy_effects"])
def test_statement_that_commits_by_itself_is_refused(alias: str, toys: Toys, consumer: Consumer, sql: str) -> None:
    ids = published(alias, 4, key=str)
    let_misbehave(toys, {ids[1]}, _executing(sql))

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {ids[1]}, "TransactionEndedError", sql[:10])
    assert "never_made" not in connections[alias].introspection.table_names()


@pytest.mark.parametrize("database_alias", ["default", "postgres"], indirect=True)
def test_table_that_is_made_within_the_transaction_is_an_effect_like_any_other(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 3, key=str)
    let_misbehave(toys, {ids[1]}, _executing("CREATE TABLE made_once (id INT)"))

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    execute(alias, "DROP TABLE made_once")


def test_refusal_that_a_handler_swallows_costs_nothing_as_nothing_was_sent(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    def swallow(alias: str) -> None:
        with suppress(Exception):
            execute(alias, "COMMIT")

    ids = published(alias, 3, key=str)
    let_misbehave(toys, {ids[1]}, swallow)

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert set(statuses(alias).values()) == {"consumed"}


# --- an error swallowed in a raw statement -----------------------------------------------------------------------


@pytest.mark.parametrize("writes", [True, False], ids=["and-writes", "and-returns"])
def test_raw_statement_whose_error_is_swallowed_fails_where_the_database_aborts_the_transaction(
    alias: str, toys: Toys, consumer: Consumer, writes: bool
) -> None:
    ids = published(alias, 4, key=str, event_type=BULK if writes else NOTE)
    bad = ids[1]
    handled: list[int] = []

    def swallow(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id == bad for each in deliveries):
            handled.append(bad)
            with suppress(DatabaseError):
                execute(alias, "SELECT nothing FROM nowhere")

    if writes:
        toys.before = swallow
    else:
        toys.handlers.remove(NOTE)
        toys.handlers.add(NOTE, lambda delivery: swallow([delivery]))
    deliver(alias, consumer, ids)

    aborts = connections[alias].vendor == "postgresql"
    assert statuses(alias) == dict.fromkeys(ids, "consumed") | ({bad: "pending"} if aborts else {})
    assert get(alias, bad).retry_count == (1 if aborts else 0)
    if writes:
        assert effect_ids(alias) == [each for each in ids if not aborts or each != bad]
    elif aborts:
        assert "swallowed ProgrammingError" in get(alias, bad).last_error


# --- what is right -----------------------------------------------------------------------------------------------


def swallow_around_a_block(alias: str) -> None:
    create_snapshot(alias)
    with suppress(IntegrityError), transaction.atomic(using=alias):
        create_snapshot(alias)


def lose_the_race_of_get_or_create(alias: str) -> None:
    create_snapshot(alias)
    with suppress(IntegrityError):
        AgentStateSnapshotRecord.objects.using(alias).get_or_create(
            conversation_id="once", user_id=2, defaults={"snapshot_json": "{}"}
        )


def roll_back_to_a_savepoint(alias: str) -> None:
    savepoint = transaction.savepoint(using=alias)
    create_snapshot(alias)
    transaction.savepoint_rollback(savepoint, using=alias)


def roll_back_to_a_savepoint_by_hand(alias: str) -> None:
    for sql in ("SAVEPOINT mine", "DELETE FROM toy_effects", "ROLLBACK TO SAVEPOINT mine", "RELEASE SAVEPOINT mine"):
        execute(alias, sql)


@pytest.mark.parametrize(
    "behave",
    [
        swallow_around_a_block,
        lose_the_race_of_get_or_create,
        roll_back_to_a_savepoint,
        roll_back_to_a_savepoint_by_hand,
    ],
    ids=lambda each: each.__name__,
)
def test_handler_that_undoes_its_own_savepoints_only_is_consumed_with_its_effects(
    alias: str, toys: Toys, consumer: Consumer, behave: Misbehave
) -> None:
    ids = published(alias, 3, key=str)
    let_misbehave(toys, {ids[1]}, behave)

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert toys.calls == [(each,) for each in ids], "nothing was done twice"


# --- limits of the server on a statement's time ------------------------------------------------------------------


@pytest.mark.parametrize("database_alias", ["mariadb"], indirect=True)
def test_statement_time_limit_in_a_handler_ends_no_worker_and_costs_nothing_at_first(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 3, key=str)

    def take_long(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == ids[1]:
            execute(alias, "SET STATEMENT max_statement_time = 0.05 FOR SELECT SLEEP(5)")

    toys.before = take_long
    deliver(alias, consumer, ids)

    assert sorted(effect_ids(alias)) == [ids[0], ids[2]]
    assert (get(alias, ids[1]).status, get(alias, ids[1]).retry_count) == ("pending", 0)


@pytest.mark.parametrize("database_alias", ["mysql"], indirect=True)
def test_execution_time_limit_in_a_handler_ends_no_worker_and_costs_nothing_at_first(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 3, key=str)
    # SLEEP() only returns early there: it takes rows to be slow with.
    slow = (
        "SELECT /*+ MAX_EXECUTION_TIME(20) */ COUNT(*) FROM information_schema.columns a, information_schema.columns b"
    )

    def take_long(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == ids[1]:
            execute(alias, slow)

    toys.before = take_long
    deliver(alias, consumer, ids)

    assert sorted(effect_ids(alias)) == [ids[0], ids[2]]
    assert (get(alias, ids[1]).status, get(alias, ids[1]).retry_count) == ("pending", 0)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_statement_time_limit_in_a_statement_of_the_library_is_waited_out(
    alias: str, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = published(alias, 4, key=str)
    code = 1969 if alias == "mariadb" else 3024
    left = iter(range(2))
    blockers = OutboxRepository.predecessors

    def time_out(self: OutboxRepository, locked: Any) -> Any:
        for _ in left:
            raise OperationalError(code, "Query execution was interrupted, maximum statement execution time exceeded")
        return blockers(self, locked)

    monkeypatch.setattr(OutboxRepository, "predecessors", time_out)
    consumer.handle(records_of(alias, ids))

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}
