"""What users do in a demo, so that all five services have work: it starts both chains of events.

What a user says goes from the chat history to the memory service. What calls for a proposal goes from its trigger to a
preview and on to a notification. The second step of a chain is published by the handler of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from agent_events.active_scheduler.events import publish_active_schedule_trigger
from agent_events.agent.events import publish_chat_history, publish_timeline_event, publish_token_usage
from agent_events.task.events import publish_task_urgency_promotion
from agent_events.task.models import Task

USED_BY_MESSAGES, USED_BESIDE = 30, 7
"""Tokens of each conversation."""
_EVENTS_PER_USER = 250
_USERS_MIN = 4
_NOT_DUE_EVERY = 4
_FIRST_USER_ID = 10_001


@dataclass(frozen=True, slots=True)
class User:
    """A user with one conversation and one task, which is due or not yet."""

    user_id: int
    is_due: bool

    @property
    def conversation_id(self) -> str:
        return f"talk-of-{self.user_id}"

    @property
    def trigger_id(self) -> str:
        return f"trigger-of-{self.user_id}"

    @property
    def task_id(self) -> int:
        return self.user_id

    @property
    def messages(self) -> tuple[str, str]:
        return f"User {self.user_id} never wants meetings before ten.", "Noted."


@dataclass(slots=True)
class Business:
    """Users, and the ids of the events that were published for them."""

    users: Sequence[User]
    event_ids: list[str] = field(default_factory=list)

    @property
    def due(self) -> list[User]:
        return [user for user in self.users if user.is_due]

    @property
    def events(self) -> int:
        """Say how many rows there will be: six a user, one that the chat publishes, one that each preview does."""
        return 7 * len(self.users) + len(self.due)


def make_business(events: int) -> Business:
    """Plan what users do beside about ``events`` other events; the same each time."""
    count = max(_USERS_MIN, events // _EVENTS_PER_USER)
    return Business([User(_FIRST_USER_ID + number, number % _NOT_DUE_EVERY != 0) for number in range(count)])


def publish_business(business: Business) -> Iterator[None]:
    """Publish user by user, a transaction each."""
    for user in business.users:
        with transaction.atomic():
            business.event_ids += _publish(user)
        yield


def _publish(user: User) -> list[str]:
    now = timezone.now()
    Task.objects.create(
        pk=user.task_id,
        user_id=user.user_id,
        title=f"Report of user {user.user_id}",
        urgency_threshold_at=now + timedelta(hours=-1 if user.is_due else 1),
    )
    question, answer = user.messages
    talk: dict[str, Any] = {"user_id": user.user_id, "conversation_id": user.conversation_id}
    half = USED_BY_MESSAGES // 2
    return [
        publish_chat_history(**talk, role="user", message=question, tokens_consumed=half),
        publish_chat_history(**talk, role="assistant", message=answer, tokens_consumed=half),
        publish_token_usage(**talk, tokens_delta=USED_BESIDE, reason="title_generation"),
        publish_timeline_event(**talk, seq=1, kind="tool_call", content="query tasks"),
        publish_task_urgency_promotion(user_id=user.user_id, task_ids=[user.task_id]),
        publish_active_schedule_trigger(
            trigger_id=user.trigger_id,
            user_id=user.user_id,
            trigger_type="important_urgent_task",
            source="worker_due_job",
            target_type="task_pool",
            target_id=user.task_id,
        ),
    ]
