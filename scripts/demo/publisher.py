"""Publishes a story: business code's own functions for what is good, plain SQL for what is poisonous."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from django.db import connection, transaction

from agent_events.agent.events import publish_agent_state_snapshot
from agent_events.agent.models import AgentOutboxMessage
from outbox import publish
from outbox.brokers.base import OutgoingRecord
from outbox.models import service_route
from outbox.workers.build import open_broker
from scripts.demo.app.events import StepTaken
from scripts.demo.errors import DemoError
from scripts.demo.stage import SERVICE
from scripts.demo.story import Poison, Published, Story, Turn


class _ChangedItsMindError(Exception):
    """Rolls a transaction back."""


def publish_story(story: Story, published: Published) -> Iterator[None]:
    """Publish act by act, a transaction each; what was published is noted in ``published``."""
    for act in story.acts():
        if isinstance(act, Poison):
            published.poisons[_write_as_other_software(act)] = act
        else:
            _publish_turn(act, published)
        yield
    published.rolled_back.append(_publish_and_roll_back(story.turns[0]))


def send_garbage() -> None:
    """Put a record on the topic that belongs to no outbox row.

    :raises DemoError: the broker did not take it.
    """
    route = service_route(SERVICE)
    with open_broker() as broker:
        producer = broker.producer(client_id="smartflow-demo")
        try:
            garbage = OutgoingRecord(0, route.topic, "somebody", b"not ours", ())
            report = producer.send([garbage]).report(timedelta(seconds=30))
        finally:
            producer.close()
    if not report.acknowledged:
        raise DemoError(f"the broker did not take the record that is nobody's: {report}")


def _publish_turn(turn: Turn, published: Published) -> None:
    with transaction.atomic():
        event_id = publish_agent_state_snapshot(turn.state, conversation_id=turn.conversation_id, user_id=turn.user_id)
        if event_id is None:
            raise DemoError(f"a snapshot of {turn.conversation_id} was not published; the reason is in the log above")
        step_id = _publish_step(turn) if turn.step is not None else None
    published.snapshots[event_id] = turn
    if step_id is not None:
        published.steps[step_id] = turn


def _publish_step(turn: Turn) -> str:
    return publish(StepTaken(conversation_id=turn.conversation_id, step=turn.step or 0, failures=turn.failures))


def _publish_and_roll_back(turn: Turn) -> str:
    event_id = ""
    try:
        with transaction.atomic():
            event_id = publish(StepTaken(conversation_id=turn.conversation_id, step=1_000_000))
            raise _ChangedItsMindError
    except _ChangedItsMindError:
        return event_id


def _write_as_other_software(poison: Poison) -> int:
    """Insert a row with the shared columns only, as a service in another language does; return its id."""
    route = service_route(SERVICE)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {AgentOutboxMessage._meta.db_table}"
            " (event_type, service_name, topic, message_key, payload, status) VALUES (%s, %s, %s, %s, %s, 'pending')",
            [poison.event_type, SERVICE, route.topic, poison.conversation_id, poison.payload],
        )
        return int(cursor.lastrowid)
