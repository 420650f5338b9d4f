"""The publishing side of the five services as a process of its own.

``python -m tests.acceptance.services_publisher load LOAD JOURNAL`` publishes by a load and writes down what came of
every transaction; ``… webhooks JSON`` gives users their webhooks.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import django
import msgspec
from django.db import transaction

from outbox.coordination.shutdown import StopFlag, stop_on_signals
from tests.acceptance.plans import Entry, Outcome

Subject = Literal["chat", "tokens", "trigger", "snapshot", "timeline", "urgency", "memory", "notification"]
"""One for each event type."""

USERS = 24
TASKS_OF_USER = 4
"""The last of them is not due."""
_SAYINGS = (
    "I never want meetings before ten.",
    "Remind me of the report.",
    "Fridays are for reading.",
    "我喜欢早上工作",
)
_TRIGGER_TYPES = ("important_urgent_task", "unfinished_feedback")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish, one transaction after the other, so that ids are committed in their order."""

    prefix: str
    subjects: list[Subject]
    transactions: int = 0
    """0 goes on until the process is told to stop."""
    events: int = 4
    """A transaction publishes from 1 to this many events."""
    rollbacks: float = 0.1
    """Share of transactions that are rolled back after they published."""
    pause_ms: int = 0
    seed: int = 0


def tasks_of(user_id: int) -> list[int]:
    """Return the ids of a user's tasks, the due ones first."""
    return [user_id * 100 + number for number in range(TASKS_OF_USER)]


def main(arguments: Sequence[str]) -> None:
    """Publish, or set webhooks."""
    django.setup()
    if arguments[0] == "webhooks":
        set_webhooks(msgspec.json.decode(arguments[1], type=dict[int, str], strict=False))
    else:
        load = msgspec.json.decode(arguments[1], type=Load)
        with stop_on_signals() as stop:
            run_load(load, Path(arguments[2]), stop)


def set_webhooks(webhooks: dict[int, str]) -> None:
    """Store webhooks by user, as a form would."""
    from agent_events.notification.assembly import build_channels

    channels = build_channels()
    for user_id, webhook in webhooks.items():
        channels.save(user_id, webhook=webhook)


class _RollBack(Exception):  # noqa: N818 - not an error: the load asks for it
    """Leaves the transaction without committing it."""


def run_load(load: Load, journal: Path, stop: StopFlag) -> None:
    """Work until the load is done or ``stop`` is set."""
    publisher = _Publisher(load)
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    done = 0
    while not stop.is_set and (not load.transactions or done < load.transactions):
        event_ids: list[str] = []
        outcome: Outcome = "committed"
        try:
            with transaction.atomic():
                publisher.write(event_ids)
        except _RollBack:
            outcome = "rolled_back"
        os.write(descriptor, msgspec.json.encode(Entry(outcome=outcome, event_ids=event_ids)) + b"\n")
        done += 1
        stop.wait(timedelta(milliseconds=load.pause_ms))
    os.close(descriptor)


class _Publisher:
    """Makes up events: most of them of a few hot conversations and users, some the repetition of an earlier one."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._dice = random.Random(f"{load.prefix}-{load.seed}")
        self._n = 0
        self._publish: dict[Subject, Callable[[], str]] = {
            "chat": self._chat,
            "tokens": self._tokens,
            "trigger": self._trigger,
            "snapshot": self._snapshot,
            "timeline": self._timeline,
            "urgency": self._urgency,
            "memory": self._memory,
            "notification": self._notification,
        }

    def write(self, event_ids: list[str]) -> None:
        """Publish the events of one transaction and note their ids as they come."""
        for _ in range(self._dice.randint(1, self._load.events)):
            self._n += 1
            # In turn, so that a small load has all of them.
            subject = self._load.subjects[self._n % len(self._load.subjects)]
            event_ids.append(self._publish[subject]())
        if self._dice.random() < self._load.rollbacks:
            raise _RollBack

    # --- one event each ------------------------------------------------------------------------------------------

    def _chat(self) -> str:
        from agent_events.agent.events import publish_chat_history

        user_id, conversation_id = self._conversation()
        role = self._dice.choice(("user", "user", "assistant", "system"))
        message = self._text() if self._dice.random() < 0.95 else " "
        return publish_chat_history(
            user_id=user_id,
            conversation_id=conversation_id,
            role=role,
            message=message,
            tokens_consumed=self._dice.randrange(200),
            reasoning_content="because" if role == "assistant" else None,
        )

    def _tokens(self) -> str:
        from agent_events.agent.events import publish_token_usage

        user_id, conversation_id = self._conversation()
        delta = self._dice.randint(1, 50)
        return publish_token_usage(
            user_id=user_id, conversation_id=conversation_id, tokens_delta=delta, reason="title_generation"
        )

    def _snapshot(self) -> str:
        from agent_events.agent.events import publish_agent_state_snapshot

        user_id, conversation_id = self._conversation()
        snapshot = {"runtime_state": {"common_state": {"phase": "planning"}}, "n": self._n}
        event_id = publish_agent_state_snapshot(snapshot, conversation_id=conversation_id, user_id=user_id)
        if event_id is None:
            raise RuntimeError("the snapshot was not published")
        return event_id

    def _timeline(self) -> str:
        from agent_events.agent.events import publish_timeline_event

        user_id, conversation_id = self._conversation()
        return publish_timeline_event(
            user_id=user_id, conversation_id=conversation_id, seq=self._n, kind="message", content=self._text()
        )

    def _memory(self) -> str:
        from agent_events.memory.events import publish_memory_extract

        user_id, conversation_id = self._conversation()
        return publish_memory_extract(
            user_id=user_id, conversation_id=conversation_id, source_role="user", source_text=self._text()
        )

    def _urgency(self) -> str:
        from agent_events.task.events import publish_task_urgency_promotion

        user_id = self._user()
        return publish_task_urgency_promotion(user_id=user_id, task_ids=tasks_of(user_id))

    def _trigger(self) -> str:
        """Publish a trigger; some are published twice, as by a worker that was not sure."""
        from agent_events.active_scheduler.events import publish_active_schedule_trigger

        # All that is told of a trigger follows from its number, so that a repetition says the same.
        number = self._n if self._dice.random() < 0.85 else self._dice.randint(1, self._n)
        told = random.Random(number)
        user_id = told.choice((1, 2, 3, told.randint(1, USERS)))
        return publish_active_schedule_trigger(
            trigger_id=f"{self._load.prefix}-{number}",
            user_id=user_id,
            trigger_type=told.choice(_TRIGGER_TYPES),  # type: ignore[arg-type]
            source="worker_due_job",
            target_type="task_pool",
            target_id=told.choice(tasks_of(user_id)),
        )

    def _notification(self) -> str:
        from agent_events.notification.events import publish_feishu_notification

        user_id = self._user()
        requested_at = datetime(2026, 3, 1, 8, tzinfo=UTC) + timedelta(minutes=self._dice.randrange(120))
        return publish_feishu_notification(
            user_id=user_id,
            trigger_id=f"direct-{self._n}",
            preview_id=f"direct-{self._n}",
            trigger_type="important_urgent_task",
            target_type="task_pool",
            target_id=tasks_of(user_id)[0],
            target_url=f"/assistant/direct-{self._n}",
            requested_at=requested_at,
        )

    # --- whom it is about ----------------------------------------------------------------------------------------

    def _user(self) -> int:
        """Return a user: half of the time one of three."""
        return self._dice.choice((1, 2, 3, *(self._dice.randint(1, USERS) for _ in range(3))))

    def _conversation(self) -> tuple[int, str]:
        user_id = self._user()
        return user_id, f"{self._load.prefix}-conversation-of-{user_id}"

    def _text(self) -> str:
        """Return a text: half of the time one that was said before, perhaps in the same conversation."""
        return self._dice.choice((*_SAYINGS, *(f"message {self._n} of {self._load.prefix}" for _ in _SAYINGS)))


def tasks_sql() -> list[tuple[Any, ...]]:
    """Return (id, user id, minutes until it becomes urgent) of every task that the loads speak of."""
    return [
        (task_id, user_id, 600 if number == TASKS_OF_USER - 1 else -60)
        for user_id in range(1, USERS + 1)
        for number, task_id in enumerate(tasks_of(user_id))
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
