"""Publish events of several services: ``python -m benchmarks.speed.services agent task … --each 4000``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import django

django.setup()

import msgspec  # noqa: E402
from django.db import transaction  # noqa: E402

from agent_events.active_scheduler.events import ActiveScheduleTriggered  # noqa: E402
from agent_events.memory.events import memory_extract  # noqa: E402
from agent_events.notification.events import FeishuNotificationRequested  # noqa: E402
from agent_events.task.events import TaskUrgencyPromoteRequested  # noqa: E402
from benchmarks.writers import snapshot  # noqa: E402
from outbox import publish_many  # noqa: E402

_MANY = 1_000
_TEXT = "x" * 700
_NOW = datetime.now(UTC)


def event(service: str, number: int) -> msgspec.Struct:
    """Return an event of ``service`` whose payload column is about 1 kB where its contract allows."""
    user_id = number % 5_000 + 1
    events: dict[str, Callable[[], msgspec.Struct]] = {
        "agent": lambda: snapshot(f"conv-{user_id}", payload_bytes=1_000),
        "task": lambda: TaskUrgencyPromoteRequested(
            user_id=user_id, task_ids=list(range(10**9 + number, 10**9 + number + 60)), triggered_at=_NOW
        ),
        "memory": lambda: memory_extract(
            user_id=user_id,
            conversation_id=f"conv-{user_id}",
            source_role="user",
            source_text=f"{number} {_TEXT}",
        ),
        "active-scheduler": lambda: ActiveScheduleTriggered(
            trigger_id=f"trigger-{number}",
            user_id=user_id,
            trigger_type="important_urgent_task",
            source="worker_due_job",
            target_type="task_pool",
            target_id=number + 1,
            is_mock_time=False,
            requested_at=_NOW,
            payload={"notes": _TEXT},
        ),
        "notification": lambda: FeishuNotificationRequested(
            user_id=user_id,
            trigger_id=f"trigger-{number}",
            preview_id=f"preview-{number}",
            trigger_type="important_urgent_task",
            target_type="task_pool",
            target_id=number,
            dedupe_key=f"bench-{number}",
            target_url="/schedule-adjust/x",
            summary_text=_TEXT,
            requested_at=_NOW,
        ),
    }
    return events[service]()


def publish_all(services: Iterable[str], each: int) -> None:
    """Publish ``each`` events of every service."""
    for service in services:
        for first in range(0, each, _MANY):
            with transaction.atomic():
                publish_many(event(service, number) for number in range(first, min(first + _MANY, each)))


def main() -> None:
    """Parse and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", nargs="+")
    parser.add_argument("--each", type=int, required=True)
    options = parser.parse_args()
    publish_all(options.services, options.each)


if __name__ == "__main__":
    main()
