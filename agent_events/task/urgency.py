"""Tasks become urgent when their time has come, by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent_events.task.models import Task
from outbox.fields import UtcNow

_MAX_IDS: Final = 1000
"""In one statement."""


def promote(task_ids: Sequence[int], *, user_id: int, using: str) -> int:
    """Make important tasks of a user urgent whose time has come, in the caller's transaction; return how many."""
    promoted = 0
    ordered = sorted(task_ids)
    for start in range(0, len(ordered), _MAX_IDS):
        due = Task.objects.using(using).filter(
            pk__in=ordered[start : start + _MAX_IDS],
            user_id=user_id,
            is_completed=False,
            priority=Task.Priority.IMPORTANT,
            urgency_threshold_at__lte=UtcNow(),
        )
        # Locked in the order of their ids: an UPDATE alone takes its locks in any order.
        locked = list(due.select_for_update().order_by("pk").values_list("pk", flat=True))
        promoted += (
            Task.objects.using(using)
            .filter(pk__in=locked)
            .update(priority=Task.Priority.IMPORTANT_URGENT, updated_at=UtcNow())
        )
    return promoted
