"""Checks, record by record, what the five services made of what users did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_events.active_scheduler.models import ActiveSchedulePreview, ActiveScheduleTrigger, TriggerStatus
from agent_events.agent.models import AgentChat, AgentTimelineEvent, ChatHistory, TokenLedgerEntry
from agent_events.memory.models import MemoryJob
from agent_events.notification.models import NotificationRecord
from agent_events.task.models import Task
from scripts.demo.business import USED_BESIDE, USED_BY_MESSAGES, Business, User
from scripts.demo.checks import Check, check, check_consumed
from scripts.demo.rows import Row, by_event_id


class BusinessAudit:
    """Compares what users did with the records of the services that it concerns."""

    def __init__(self, business: Business, rows: Sequence[Row]) -> None:
        self._business = business
        self._rows = by_event_id(rows)

    def checks(self) -> list[Check]:
        """Check everything."""
        return [
            check_consumed("events of users that are consumed, one row each", self._business.event_ids, self._rows),
            self._records_of_the_agent(),
            self._tasks(),
            self._chat_to_memory(),
            self._trigger_to_notification(),
        ]

    def _records_of_the_agent(self) -> Check:
        said = _by(ChatHistory.objects.order_by("id").values_list("user_id", "message"))
        chats = _by(AgentChat.objects.values_list("user_id", "message_count", "tokens_total"))
        ledger = _by(TokenLedgerEntry.objects.values_list("user_id", "tokens_delta"))
        timeline = _by(AgentTimelineEvent.objects.values_list("user_id", "seq"))
        return self._of_users(
            "conversations with their history in order, exact sums, ledger and timeline",
            {
                user: (
                    [(message,) for message in user.messages],
                    [(2, USED_BY_MESSAGES + USED_BESIDE)],
                    [(USED_BESIDE,)],
                    [(1,)],
                )
                for user in self._business.users
            },
            lambda user_id: (said[user_id], chats[user_id], ledger[user_id], timeline[user_id]),
        )

    def _tasks(self) -> Check:
        urgent = _by(Task.objects.values_list("user_id", "priority"))
        return self._of_users(
            "tasks that became urgent when they were due, and no others",
            {
                user: [(Task.Priority.IMPORTANT_URGENT if user.is_due else Task.Priority.IMPORTANT,)]
                for user in self._business.users
            },
            lambda user_id: urgent[user_id],
        )

    def _chat_to_memory(self) -> Check:
        jobs = _by(MemoryJob.objects.values_list("user_id", "source_text"))
        return self._of_users(
            "chain: what a user said became one memory job",
            {user: [(user.messages[0],)] for user in self._business.users},
            lambda user_id: jobs[user_id],
        )

    def _trigger_to_notification(self) -> Check:
        """One row in each table, all of one preview; a task that is not due closes its trigger and that is all."""
        triggers = dict(ActiveScheduleTrigger.objects.values_list("user_id", "status"))
        previews = _by(ActiveSchedulePreview.objects.values_list("user_id", "trigger_id", "preview_id"))
        records = _by(NotificationRecord.objects.values_list("user_id", "trigger_id", "preview_id"))
        ends = Counter(triggers.values())
        due = len(self._business.due)
        expected = {TriggerStatus.PREVIEW_GENERATED: due, TriggerStatus.CLOSED: len(self._business.users) - due}
        broken = [] if ends == Counter(expected) else [f"triggers ended as {dict(ends)}, not as {expected}"]
        for user in self._business.users:
            found = previews[user.user_id], records[user.user_id]
            one_each = found[0] == found[1] and [trigger for trigger, _ in found[0]] == [user.trigger_id]
            if not (one_each if user.is_due else found == ([], [])):
                broken.append(f"user {user.user_id}: previews {found[0]}, notifications {found[1]}")
        return check("chain: a trigger became one preview and one notification, or was closed", triggers, broken)

    def _of_users(self, what: str, expected: Mapping[User, Any], found: Any) -> Check:
        broken = [
            f"user {user.user_id}: expected {wanted}, found {found(user.user_id)}"
            for user, wanted in expected.items()
            if found(user.user_id) != wanted
        ]
        return check(what, expected, broken)


def _by(rows: Iterable[tuple[Any, ...]]) -> defaultdict[int, list[tuple[Any, ...]]]:
    """Return the rest of each row by its first column."""
    found: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for first, *rest in rows:
        found[first].append(tuple(rest))
    return found
