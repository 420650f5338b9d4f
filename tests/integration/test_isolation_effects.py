"""A handler that returned has not proved that its effects are in the transaction: what undoes them fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox import Delivery
from outbox.consumer import Consumer
from outbox.handlers import Handler
from tests import factories
from tests.consumers import deliver, published
from tests.factories import get, make_due, statuses
from tests.toys import BULK, NOTE, Toys, effect_ids

Misbehave = Callable[[str], None]

# --- what a handler does -----------------------------------------------------------------------------------------


def swallow_an_integrity_error(alias: str) -> None:
    _create_snapshot(alias)
    with suppress(IntegrityError):
        _create_snapshot(alias)


def set_rollback(alias: str) -> None:
    transaction.set_rollback(True, using=alias)


def enter_a_block_for_ever(alias: str) -> None:
    transaction.atomic(using=alias).__enter__()


def enter_a_block_without_savepoint_for_ever(alias: str) -> None:
    transaction.atomic(using=alias, savepoint=False).__enter__()


def close(alias: str) -> None:
    connections[alias].close()


def reconnect(alias: str) -> None:
    connections[alias].close()
    connections[alias].connect()


def roll_back_in_the_driver(alias: str) -> None:
    connections[alias].connection.rollback()


def commit_in_the_driver(alias: str) -> None:
    connections[alias].connection.commit()


def _executing(sql: str) -> Misbehave:
    def execute(alias: str) -> None:
        _execute(alias, sql)

    execute.__name__ = sql.lower().replace(" ", "_")
    return execute


UNDOING: dict[Misbehave, tuple[str, str]] = {
    swallow_an_integrity_error: ("UndoneEffectsError", "swallowed IntegrityError"),
    set_rollback: ("UndoneEffectsError", "transaction.set_rollback(True)"),
    enter_a_block_for_ever: ("UndoneEffectsError", "a block of its own open"),
    enter_a_block_without_savepoint_for_ever: ("UndoneEffectsError", "a block of its own open"),
}
"""What leaves the connection alone, so that it can happen in a test's transaction too. With what the row says of it."""

BREAKING: dict[Misbehave, tuple[str, str]] = {
    close: ("ClosedConnectionError", "the handler closed the database connection"),
    reconnect: ("UndoneEffectsError", "is not open any more"),
    roll_back_in_the_driver: ("UndoneEffectsError", "is not open any more"),
}

REFUSED = [
    _executing("ROLLBACK"),
    _executing("COMMIT"),
    _executing("BEGIN"),
    _executing("START TRANSACTION"),
]

# --- fails alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("misbehave", UNDOING | BREAKING, ids=lambda each: each.__name__)
def test_handler_that_undoes_effects_in_silence_fails_alone_and_says_why(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave, event_type: str
) -> None:
    ids = published(alias, 8, key=str, event_type=event_type)
    bad = set(ids[1::2])
    _let_misbehave(toys, bad, misbehave)

    deliver(alias, consumer, ids)

    _check_that_these_failed_alone(alias, ids, bad, *(UNDOING | BREAKING)[misbehave])
    assert (consumer.totals.consumed, consumer.totals.retried) == (4, 4)
    bad.clear()
    make_due(alias)
    deliver(alias, consumer, ids)
    assert sorted(effect_ids(alias)) == ids


@pytest.mark.parametrize("misbehave", [swallow_an_integrity_error, set_rollback], ids=lambda each: each.__name__)
def test_half_of_a_large_batch_undoes_effects_and_the_other_half_has_its_own(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave
) -> None:
    ids = published(alias, 200, key=str)
    bad = set(ids[::2])
    _let_misbehave(toys, bad, misbehave)

    deliver(alias, consumer, ids)

    _check_that_these_failed_alone(alias, ids, bad, *UNDOING[misbehave])
    assert all(sum(each in call for call in toys.calls) <= 3 for each in ids)


def test_reason_says_how_to_swallow_an_error_and_keep_effects(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1)
    _let_misbehave(toys, {row_id}, swallow_an_integrity_error)

    deliver(alias, consumer, [row_id])

    assert "`with transaction.atomic(): ...` inside of `try`" in get(alias, row_id).last_error


def test_handler_that_fails_within_a_block_that_it_never_left_leaves_the_connection_as_it_was(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    def enter_and_raise(alias: str) -> None:
        enter_a_block_for_ever(alias)
        raise LookupError("nothing found")

    ids = published(alias, 4, key=str)
    bad = {ids[1], ids[2]}
    _let_misbehave(toys, bad, enter_and_raise)

    deliver(alias, consumer, ids)

    _check_that_these_failed_alone(alias, ids, bad, "LookupError", "nothing found")
    assert not connections[alias].in_atomic_block


def test_commit_in_the_driver_fails_its_event_and_loses_nobodys_effect(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    """What it committed is done again, as the marks were not with it: no library can undo that."""
    ids = published(alias, 4, key=str)
    bad = ids[1]
    _let_misbehave(toys, {bad}, commit_in_the_driver)

    deliver(alias, consumer, ids)

    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {bad: "pending"}
    assert set(ids) - {bad} <= set(effect_ids(alias))
    assert (get(alias, bad).retry_count, get(alias, bad).error_class) == (1, "UndoneEffectsError")


# --- refused before it is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("misbehave", REFUSED, ids=lambda each: each.__name__)
def test_statement_that_ends_the_transaction_is_refused_and_doubles_nobodys_effect(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave
) -> None:
    ids = published(alias, 6, key=str)
    bad = {ids[2], ids[3]}
    _let_misbehave(toys, bad, misbehave)

    deliver(alias, consumer, ids)

    _check_that_these_failed_alone(alias, ids, bad, "TransactionEndedError", "Leave the transaction to the consumer")


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
@pytest.mark.parametrize("sql", ["CREATE TABLE never_made (id INT)", "TRUNCATE TABLE toy_effects"])
def test_statement_that_commits_by_itself_is_refused(alias: str, toys: Toys, consumer: Consumer, sql: str) -> None:
    ids = published(alias, 4, key=str)
    _let_misbehave(toys, {ids[1]}, _executing(sql))

    deliver(alias, consumer, ids)

    _check_that_these_failed_alone(alias, ids, {ids[1]}, "TransactionEndedError", sql[:10])
    assert "never_made" not in connections[alias].introspection.table_names()


@pytest.mark.parametrize("database_alias", ["default", "postgres"], indirect=True)
def test_table_that_is_made_within_the_transaction_is_an_effect_like_any_other(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 3, key=str)
    _let_misbehave(toys, {ids[1]}, _executing("CREATE TABLE made_once (id INT)"))

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    _execute(alias, "DROP TABLE made_once")


def test_refusal_that_a_handler_swallows_costs_nothing_as_nothing_was_sent(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    def swallow(alias: str) -> None:
        with suppress(Exception):
            _execute(alias, "COMMIT")

    ids = published(alias, 3, key=str)
    _let_misbehave(toys, {ids[1]}, swallow)

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
                _execute(alias, "SELECT nothing FROM nowhere")

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
    _create_snapshot(alias)
    with suppress(IntegrityError), transaction.atomic(using=alias):
        _create_snapshot(alias)


def lose_the_race_of_get_or_create(alias: str) -> None:
    _create_snapshot(alias)
    with suppress(IntegrityError):
        AgentStateSnapshotRecord.objects.using(alias).get_or_create(
            conversation_id="once", user_id=2, defaults={"snapshot_json": "{}"}
        )


def roll_back_to_a_savepoint(alias: str) -> None:
    savepoint = transaction.savepoint(using=alias)
    _create_snapshot(alias)
    transaction.savepoint_rollback(savepoint, using=alias)


def roll_back_to_a_savepoint_by_hand(alias: str) -> None:
    for sql in ("SAVEPOINT mine", "DELETE FROM toy_effects", "ROLLBACK TO SAVEPOINT mine", "RELEASE SAVEPOINT mine"):
        _execute(alias, sql)


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
    _let_misbehave(toys, {ids[1]}, behave)

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert toys.calls == [(each,) for each in ids], "nothing was done twice"


# --- in a test's transaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("misbehave", UNDOING, ids=lambda each: each.__name__)
def test_it_fails_alone_in_the_transaction_of_a_test_too(alias: str, toys: Toys, misbehave: Misbehave) -> None:
    consumer = factories.consumer(alias, toys)
    with transaction.atomic(using=alias):
        ids = published(alias, 8, key=str)
        bad = set(ids[1::2])
        _let_misbehave(toys, bad, misbehave)

        deliver(alias, consumer, ids)

        _check_that_these_failed_alone(alias, ids, bad, *UNDOING[misbehave])
        transaction.set_rollback(True, using=alias)
    assert statuses(alias) == {}


def _let_misbehave(toys: Toys, row_ids: set[int], misbehave: Misbehave) -> None:
    """Have the handlers of these rows do something when they have written their effects."""
    for event_type in (NOTE, BULK):
        handler = toys.handlers.get(event_type)
        assert handler is not None
        toys.handlers.remove(event_type)
        toys.handlers.add(event_type, partial(_misbehaving, handler, row_ids, misbehave), batch=handler.batch)


def _misbehaving(handler: Handler, row_ids: set[int], misbehave: Misbehave, argument: Any) -> None:
    handler.function(argument)
    for each in argument if handler.batch else [argument]:
        if each.outbox_id in row_ids:
            misbehave(each.database)


def _check_that_these_failed_alone(alias: str, ids: list[int], bad: set[int], error_class: str, reason: str) -> None:
    good = [each for each in ids if each not in bad]
    assert statuses(alias) == dict.fromkeys(ids, "consumed") | dict.fromkeys(bad, "pending")
    assert sorted(effect_ids(alias)) == good, "each once, and none of an event that is not consumed"
    for each in bad:
        found = get(alias, each)
        assert (found.retry_count, found.interruptions, found.error_class) == (1, 0, error_class)
        assert reason in found.last_error


def _create_snapshot(alias: str) -> None:
    AgentStateSnapshotRecord.objects.using(alias).create(conversation_id="once", user_id=1, snapshot_json="{}")


def _execute(alias: str, sql: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
