"""What a project's own tests are given: published events, and an outbox that is worked off at once."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import pytest
from django.db import transaction
from django.test import TestCase

from agent_events.agent.events import AgentStateSnapshot
from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from outbox import Delivery, Discard, OnDead, Retry, event, handles, publish, publish_many, signals
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import handlers
from outbox.models import RejectedRecord, ServiceSwitch, ShardLease, Worker
from outbox.registry.catalog import forget_routes
from outbox.testing import CapturedEvent, DrainError, captured_events, drain
from tests.conftest import Configure


class StepTaken(msgspec.Struct, frozen=True):
    """An event whose handler the test gives."""

    walk: str
    number: int = 0


class StepAnswered(msgspec.Struct, frozen=True):
    """An event of another service."""

    walk: str


class GateCrossed(msgspec.Struct, frozen=True):
    """An event that parks its key when it dies."""

    walk: str


STEP, ANSWER, GATE = "testing.step", "testing.answer", "testing.gate"


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """Declare the events of this module, and forget them with their handlers afterwards."""
    event(STEP, service="agent", key="walk")(StepTaken)
    event(ANSWER, service="task", key="walk")(StepAnswered)
    event(GATE, service="agent", key="walk", on_dead=OnDead.PARK)(GateCrossed)
    yield
    for payload_type, event_type in ((StepTaken, STEP), (StepAnswered, ANSWER), (GateCrossed, GATE)):
        handlers.remove(event_type)
        del contracts._by_type[event_type], contracts._by_payload[payload_type]
    forget_routes()


def snapshot(number: int = 1, conversation: str = "c-1") -> AgentStateSnapshot:
    return AgentStateSnapshot(conversation_id=conversation, user_id=number, phase="p", snapshot_json="{}")


def statuses(alias: str) -> list[str]:
    return list(AgentOutboxMessage.objects.using(alias).order_by("id").values_list("status", flat=True))


# --- captured_events ---------------------------------------------------------------------------------------------


def test_captured_events_are_pairs_in_order_of_publication(alias: str) -> None:
    publish(snapshot(99))
    with captured_events() as events:
        publish(snapshot(1))
        publish_many([StepTaken("w", 1), StepAnswered("w"), StepTaken("w", 2)])
    publish(snapshot(100))
    assert events == [
        ("agent.state.snapshot.persist", snapshot(1)),
        (STEP, StepTaken("w", 1)),
        (STEP, StepTaken("w", 2)),
        (ANSWER, StepAnswered("w")),
    ]
    assert events[1] == CapturedEvent(STEP, StepTaken("w", 1))
    assert events[-1].event_type == ANSWER
    assert events.of(StepTaken) == [StepTaken("w", 1), StepTaken("w", 2)]
    assert events.event_types == ["agent.state.snapshot.persist", STEP, STEP, ANSWER]
    assert len(events) == 4
    assert "StepAnswered" in repr(events)


def test_captured_events_can_be_looked_at_before_the_end(alias: str) -> None:
    with captured_events() as events:
        assert events == []
        publish(StepTaken("w"))
        assert events.of(StepTaken) == [StepTaken("w")]
        publish(StepTaken("w", 2))
        assert len(events) == 2


def test_captured_events_are_without_what_was_rolled_back(alias: str) -> None:
    def fail_after_publishing() -> None:
        with transaction.atomic(using=alias):
            publish(StepTaken("w", 1))
            raise RuntimeError

    with captured_events() as events:
        with pytest.raises(RuntimeError):
            fail_after_publishing()
        publish(StepTaken("w", 2))
    assert events.of(StepTaken) == [StepTaken("w", 2)]


def test_captured_events_of_named_services_only(alias: str) -> None:
    with captured_events("task") as events:
        publish_many([StepTaken("w"), StepAnswered("w")])
    assert events.event_types == [ANSWER]


# --- drain -------------------------------------------------------------------------------------------------------


def test_drain_brings_every_event_to_its_handler(alias: str) -> None:
    publish_many([snapshot(number, f"c-{number}") for number in range(1, 8)])
    drained = drain()
    assert (drained.consumed, drained.retried, drained.dead) == (7, 0, ())
    assert AgentStateSnapshotRecord.objects.using(alias).count() == 7
    assert set(statuses(alias)) == {"consumed"}
    assert drain().consumed == 0


def test_drain_works_inside_the_transaction_of_a_test(alias: str) -> None:
    @handles(StepTaken)
    def _fail_first_attempt(delivery: Delivery[StepTaken]) -> None:
        AgentStateSnapshotRecord.objects.using(alias).create(
            conversation_id=delivery.payload.walk, user_id=delivery.attempt, phase="", snapshot_json="{}"
        )
        if delivery.attempt == 1:
            raise ValueError("not yet")

    with transaction.atomic(using=alias):
        with captured_events() as events:
            publish_many([snapshot(), StepTaken("w")])
        assert len(events) == 2
        drained = drain(ignore_backoff=True)
        assert (drained.consumed, drained.retried) == (2, 1)
        records = AgentStateSnapshotRecord.objects.using(alias).order_by("conversation_id")
        assert list(records.values_list("conversation_id", "user_id")) == [("c-1", 1), ("w", 2)]
        transaction.set_rollback(True, using=alias)
    assert statuses(alias) == []


def test_drain_goes_on_with_what_handlers_publish_to_other_services(alias: str) -> None:
    answered = []
    handles(StepAnswered)(lambda delivery: answered.append(delivery.payload.walk))

    @handles(StepTaken)
    def _publish_answer(delivery: Delivery[StepTaken]) -> None:
        publish(StepAnswered(delivery.payload.walk))

    publish_many([StepTaken("a"), StepTaken("b")])
    drained = drain()
    assert sorted(answered) == ["a", "b"]
    assert drained.consumed == 4


def test_drain_of_named_services_leaves_others_alone(alias: str) -> None:
    answered = []
    handles(StepTaken)(lambda delivery: None)
    handles(StepAnswered)(lambda delivery: answered.append(delivery.payload.walk))
    publish_many([StepTaken("a"), StepAnswered("b")])
    assert drain("task").consumed == 1
    assert answered == ["b"]
    assert statuses(alias) == ["pending"]


def test_drain_leaves_what_waits_for_its_next_attempt(alias: str) -> None:
    seen = []

    @handles(StepTaken)
    def _fail_first(delivery: Delivery[StepTaken]) -> None:
        seen.append((delivery.payload.number, delivery.attempt))
        if delivery.payload.number == 1 and delivery.attempt < 3:
            raise Retry("in an hour", after=timedelta(hours=1))

    publish_many([StepTaken("w", 1), StepTaken("w", 2), StepTaken("other", 3)])
    drained = drain()
    assert (drained.consumed, drained.retried) == (1, 1)
    assert drained.waited >= 1, "the second waits behind the first"
    assert statuses(alias) == ["pending", "pending", "consumed"]

    drained = drain(ignore_backoff=True)
    assert (drained.consumed, drained.retried) == (2, 1)
    attempts_of_w = [each for each in seen if each[0] != 3]
    assert attempts_of_w[-2:] == [(1, 3), (2, 1)], "order per key holds here too"


def test_drain_says_what_died_and_raises_when_asked(alias: str) -> None:
    @handles(StepTaken)
    def _discard(delivery: Delivery[StepTaken]) -> None:
        raise Discard("no such walk")

    publish(StepTaken("w"))
    drained = drain()
    assert [each.service for each in drained.dead] == ["agent"]
    assert "no such walk" in drained.dead[0].reason
    publish(StepTaken("w"))
    with pytest.raises(DrainError, match=r"event \d+ of agent: Discard: no such walk"):
        drain(raise_on_dead=True)


def test_drain_brings_attempts_to_their_end_when_back_off_is_ignored(alias: str, configure: Configure) -> None:
    configure(EVENTS={STEP: {"MAX_ATTEMPTS": 4}})

    @handles(StepTaken)
    def _fail(delivery: Delivery[StepTaken]) -> None:
        raise ValueError(f"attempt {delivery.attempt}")

    publish(StepTaken("w"))
    drained = drain(ignore_backoff=True)
    assert (drained.retried, len(drained.dead)) == (3, 1)
    assert "attempt 4" in drained.dead[0].reason


def test_drain_ends_where_a_dead_event_parks_its_key(alias: str) -> None:
    @handles(GateCrossed)
    def _refuse(delivery: Delivery[GateCrossed]) -> None:
        raise Discard("closed")

    handles(StepTaken)(lambda delivery: None)
    publish_many([GateCrossed("w"), StepTaken("w")])
    drained = drain(ignore_backoff=True)
    assert len(drained.dead) == 1
    assert statuses(alias) == ["dead", "pending"]


def test_drain_gives_up_on_handlers_that_publish_without_end(alias: str) -> None:
    @handles(StepTaken)
    def _again(delivery: Delivery[StepTaken]) -> None:
        publish(StepTaken("w", delivery.payload.number + 1))

    publish(StepTaken("w"))
    with pytest.raises(DrainError, match="after 5 rounds"):
        drain(max_rounds=5)


def test_drain_leaves_no_worker_lease_or_receiver(alias: str) -> None:
    before = (len(signals.buried.receivers), len(signals.refused.receivers))
    ServiceSwitch.objects.using(alias).create(service="agent", relay_paused=True, consumer_paused=True)
    publish(snapshot())
    assert drain().consumed == 1, "a paused service is not spared"
    for model in (Worker, ShardLease, RejectedRecord):
        assert not model.objects.using(alias).exists()
    assert (len(signals.buried.receivers), len(signals.refused.receivers)) == before


def test_drain_of_an_unknown_service_says_which_there_are(alias: str) -> None:
    with pytest.raises(Exception, match="agent, memory"):
        drain("agnet")


# --- as a project writes it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_helpers_work_in_a_django_test_case(alias: str) -> None:
    class SnapshotTests(TestCase):
        def test_published_and_kept(self) -> None:
            with captured_events() as events:
                publish(snapshot(7))
            self.assertEqual(events, [("agent.state.snapshot.persist", snapshot(7))])  # noqa: PT009
            drain()
            self.assertTrue(AgentStateSnapshotRecord.objects.filter(user_id=7).exists())  # noqa: PT009

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(SnapshotTests).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
    assert statuses(alias) == [], "it was rolled back"
