"""A handler that returned has not proved that its effects are in the transaction: what undoes them fails alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from django.db import IntegrityError, connections, transaction

from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from outbox import Delivery, event, handles, publish_many
from outbox.consumer.loop import Consumer
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import handlers
from outbox.registry.catalog import forget_routes
from outbox.testing import drain
from tests import factories
from tests.consumers import published, see_through
from tests.factories import get, make_due, statuses
from tests.integration.misbehaving import Misbehave, check_that_these_failed_alone, create_snapshot, let_misbehave
from tests.toys import BULK, NOTE, Toys, effect_ids

MEASURED = "isolation.measured"

# --- what a handler does -----------------------------------------------------------------------------------------


def swallow_an_integrity_error(alias: str) -> None:
    create_snapshot(alias)
    with suppress(IntegrityError):
        create_snapshot(alias)


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


def leave_the_block_of_the_consumer(alias: str) -> None:
    transaction.atomic(using=alias).__exit__(None, None, None)


UNDOING: dict[Misbehave, tuple[str, str]] = {
    swallow_an_integrity_error: ("UndoneEffectsError", "swallowed IntegrityError"),
    set_rollback: ("UndoneEffectsError", "transaction.set_rollback(True)"),
    enter_a_block_for_ever: ("UndoneEffectsError", "a block of its own open"),
    enter_a_block_without_savepoint_for_ever: ("UndoneEffectsError", "a block of its own open"),
}
"""What leaves the connection alone, so that it can happen in a transaction of a test; with what the row says of it."""

BREAKING: dict[Misbehave, tuple[str, str]] = {
    close: ("ClosedConnectionError", "the handler closed the database connection"),
    reconnect: ("UndoneEffectsError", "is not open any more"),
    roll_back_in_the_driver: ("UndoneEffectsError", "is not open any more"),
}

# --- fails alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("misbehave", UNDOING | BREAKING, ids=lambda each: each.__name__)
def test_handler_that_undoes_effects_in_silence_fails_alone_and_says_why(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave, event_type: str
) -> None:
    ids = published(alias, 8, key=str, event_type=event_type)
    bad = set(ids[1::2])
    let_misbehave(toys, bad, misbehave)

    see_through(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, *(UNDOING | BREAKING)[misbehave])
    assert (consumer.totals.consumed, consumer.totals.retried) == (4, 4)
    bad.clear()
    make_due(alias)
    see_through(alias, consumer, ids)
    assert sorted(effect_ids(alias)) == ids


@pytest.mark.parametrize("misbehave", [swallow_an_integrity_error, set_rollback], ids=lambda each: each.__name__)
def test_half_of_a_large_batch_undoes_effects_and_the_other_half_has_its_own(
    alias: str, toys: Toys, consumer: Consumer, misbehave: Misbehave
) -> None:
    ids = published(alias, 200, key=str)
    bad = set(ids[::2])
    let_misbehave(toys, bad, misbehave)

    see_through(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, *UNDOING[misbehave])
    assert all(sum(each in call for call in toys.calls) <= 3 for each in ids)


def test_handler_that_goes_on_after_an_error_that_it_swallowed_fails_by_that_error(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    """Django refuses its next statement with an error that does not say what was swallowed."""

    def swallow_and_go_on(alias: str) -> None:
        swallow_an_integrity_error(alias)
        create_snapshot(alias)

    ids = published(alias, 3, key=str)
    let_misbehave(toys, {ids[1]}, swallow_and_go_on)

    see_through(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, {ids[1]}, "UndoneEffectsError", "swallowed IntegrityError")
    assert "in swallow_and_go_on" in get(alias, ids[1]).traceback


def test_reason_says_how_to_swallow_an_error_and_keep_effects(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1)
    let_misbehave(toys, {row_id}, swallow_an_integrity_error)

    see_through(alias, consumer, [row_id])

    assert "`with transaction.atomic(): ...` in `try`" in get(alias, row_id).last_error


def test_handler_that_fails_within_a_block_that_it_never_left_leaves_the_connection_as_it_was(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    def enter_and_raise(alias: str) -> None:
        enter_a_block_for_ever(alias)
        raise LookupError("nothing found")

    ids = published(alias, 4, key=str)
    bad = {ids[1], ids[2]}
    let_misbehave(toys, bad, enter_and_raise)

    see_through(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "LookupError", "nothing found")
    assert not connections[alias].in_atomic_block


@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize(
    "commit", [commit_in_the_driver, leave_the_block_of_the_consumer], ids=lambda each: each.__name__
)
def test_commit_that_nobody_sees_fails_its_event_and_loses_nobodys_effect(
    alias: str, toys: Toys, consumer: Consumer, commit: Misbehave, event_type: str
) -> None:
    """What it committed is done again, as the marks were not with it: no library can undo that."""
    ids = published(alias, 4, key=str, event_type=event_type)
    bad = ids[1]
    let_misbehave(toys, {bad}, commit)

    see_through(alias, consumer, ids)

    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {bad: "pending"}
    assert set(ids) - {bad} <= set(effect_ids(alias))
    assert (get(alias, bad).retry_count, get(alias, bad).error_class) == (1, "UndoneEffectsError")
    assert not connections[alias].in_atomic_block


# --- in a test's transaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("misbehave", UNDOING, ids=lambda each: each.__name__)
def test_it_fails_alone_in_the_transaction_of_a_test_too(alias: str, toys: Toys, misbehave: Misbehave) -> None:
    consumer = factories.consumer(alias, toys)
    with transaction.atomic(using=alias):
        ids = published(alias, 8, key=str)
        bad = set(ids[1::2])
        let_misbehave(toys, bad, misbehave)

        see_through(alias, consumer, ids)

        check_that_these_failed_alone(alias, ids, bad, *UNDOING[misbehave])
        transaction.set_rollback(True, using=alias)
    assert statuses(alias) == {}


class Measured(msgspec.Struct, frozen=True):
    """An event whose handler the test gives."""

    place: str


@pytest.fixture
def measured() -> Iterator[None]:
    """Declare an event to all the process, as applications do, and forget it with its handler afterwards."""
    event(MEASURED, service="agent", key="place")(Measured)
    yield
    handlers.remove(MEASURED)
    del contracts._by_type[MEASURED], contracts._by_payload[Measured]
    forget_routes()


@pytest.mark.parametrize("misbehave", UNDOING, ids=lambda each: each.__name__)
def test_drain_in_a_test_tells_what_the_handler_lost(alias: str, measured: None, misbehave: Misbehave) -> None:
    @handles(Measured)
    def _write(delivery: Delivery[Measured]) -> None:
        place = delivery.payload.place
        AgentStateSnapshotRecord.objects.using(alias).create(conversation_id=place, user_id=1, snapshot_json="{}")
        if place.startswith("bad"):
            misbehave(alias)

    with transaction.atomic(using=alias):
        publish_many([Measured(place) for place in ("good-1", "bad-1", "good-2", "bad-2", "good-3")])

        drained = drain("agent")

        assert (drained.consumed, drained.retried) == (3, 2)
        records = AgentStateSnapshotRecord.objects.using(alias).exclude(conversation_id="once")
        assert sorted(records.values_list("conversation_id", flat=True)) == ["good-1", "good-2", "good-3"]
        errors = AgentOutboxMessage.objects.using(alias).filter(retry_count=1).values_list("last_error", flat=True)
        assert all(UNDOING[misbehave][1] in each for each in errors)
        transaction.set_rollback(True, using=alias)
