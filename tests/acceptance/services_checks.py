"""What the five services' tables must say after a load, worked out from the outbox rows and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from tests.acceptance.plans import Journal, read_journal
from tests.acceptance.promises import Row, check_delivery
from tests.acceptance.services_harness import ServicesInstallation
from tests.acceptance.services_publisher import tasks_sql
from tests.conftest import SERVICES

CHAT, TOKENS = "chat.history.persist.requested", "chat.token.usage.adjust.requested"
EXTRACT, TRIGGERED = "memory.extract.requested", "active_schedule.triggered"
NOTIFY = "notification.feishu.requested"


def insert_tasks(installation: ServicesInstallation) -> None:
    """Make the tasks that the loads speak of."""
    for task_id, user_id, minutes in tasks_sql():
        installation.database.execute(
            "INSERT INTO tasks (id, user_id, title, urgency_threshold_at)"
            " VALUES (%s, %s, %s, UTC_TIMESTAMP(6) + INTERVAL %s MINUTE)",
            [task_id, user_id, f"task {task_id}", minutes],
        )


def check_journal(installation: ServicesInstallation, *, by_handlers: Iterable[str] = ()) -> None:
    """Check that what was committed, and nothing else, is consumed at the first attempt.

    ``by_handlers`` are events that handlers published, which no journal knows of.
    """
    journal = Journal()
    for path in installation._loads:
        journal.add(read_journal(path))
    assert journal.committed
    journal.unknown.update(by_handlers)
    rows: list[Row] = [row for service in SERVICES for row in installation.rows(service)]
    check_delivery(rows, journal, dead=())
    for worker in installation.workers:
        assert "Traceback (most recent call last)" not in worker.text, f"{worker.name} wrote:\n{worker.text}"
    assert not installation.rejected()


def check_chats(installation: ServicesInstallation) -> None:
    """Check that each message is in its history once and in order, and that the chats' sums are exact."""
    messages = installation.payloads("agent", CHAT)
    expected: dict[tuple[str, int], list[tuple[str, str, str]]] = defaultdict(list)
    counts: Counter[tuple[str, int]] = Counter()
    tokens: Counter[tuple[str, int]] = Counter()
    for _, event_id, payload in messages:
        chat = payload["conversation_id"], payload["user_id"]
        expected[chat].append((event_id, payload["role"], payload["message"]))
        counts[chat] += 1
        tokens[chat] += payload["tokens_consumed"]
    for _, _, payload in installation.payloads("agent", TOKENS):
        tokens[payload["conversation_id"], payload["user_id"]] += payload["tokens_delta"]

    kept: dict[tuple[str, int], list[tuple[str, str, str]]] = defaultdict(list)
    for conversation, user_id, *message in installation.database.query(
        "SELECT conversation_id, user_id, event_id, role, message FROM chat_histories ORDER BY id"
    ):
        kept[conversation, user_id].append(tuple(message))
    wrong = [chat for chat in expected.keys() | kept.keys() if expected.get(chat) != kept.get(chat)]
    assert not wrong, f"chats whose history is not that of their events: {wrong}"

    sums = {
        (conversation, user_id): (message_count, tokens_total)
        for conversation, user_id, message_count, tokens_total in installation.database.query(
            "SELECT conversation_id, user_id, message_count, tokens_total FROM agent_chats"
        )
    }
    assert sums == {chat: (counts[chat], tokens[chat]) for chat in tokens}


def check_memory_jobs(installation: ServicesInstallation) -> None:
    """Check that each text that a user said was offered once, and that there is one job for each key."""
    said = [
        (payload["user_id"], payload["conversation_id"], payload["message"])
        for _, _, payload in installation.payloads("agent", CHAT)
        if payload["role"] == "user" and payload["message"].strip()
    ]
    offered = [
        (payload["user_id"], payload["conversation_id"], payload["source_text"], payload["idempotency_key"])
        for _, _, payload in installation.payloads("memory", EXTRACT)
        if "source_message_id" in payload
    ]
    assert Counter((*each, key_of(*each)) for each in said) == Counter(offered), "offered twice, or not at all"
    keys = [payload["idempotency_key"] for _, _, payload in installation.payloads("memory", EXTRACT)]
    jobs = Counter(key for (key,) in installation.database.query("SELECT idempotency_key FROM memory_jobs"))
    assert jobs == dict.fromkeys(keys, 1)


def key_of(user_id: int, conversation_id: str, text: str) -> str:
    """Return the idempotency key as the Go services make it."""
    digest = hashlib.sha256(f"{user_id}|{conversation_id}|{text}".encode()).hexdigest()
    return f"memory_extract_{user_id}_{digest[:16]}"


def check_previews(installation: ServicesInstallation) -> None:
    """Check that each trigger ended, and that those of a due task have one preview and one request to tell of it."""
    due_tasks = {task_id for task_id, _, minutes in tasks_sql() if minutes < 0}
    asked = {
        payload["trigger_id"]: payload["target_id"]
        for _, _, payload in installation.payloads("active-scheduler", TRIGGERED)
    }
    statuses = dict(installation.database.query("SELECT trigger_id, status FROM active_schedule_triggers"))
    assert statuses == {
        trigger: "preview_generated" if task in due_tasks else "closed" for trigger, task in asked.items()
    }
    proposed = [trigger for trigger, task in asked.items() if task in due_tasks]
    previews = installation.database.query("SELECT trigger_id, preview_id FROM active_schedule_previews")
    assert Counter(trigger for trigger, _ in previews) == dict.fromkeys(proposed, 1)
    requests = [
        (payload["trigger_id"], payload["preview_id"])
        for _, _, payload in installation.payloads("notification", NOTIFY)
        if not payload["trigger_id"].startswith("direct-")
    ]
    assert Counter(requests) == Counter(previews), "a request to tell of a preview is missing or there twice"


def check_notification_records(installation: ServicesInstallation) -> None:
    """Check that there is one record for each dedupe key, that of the first request."""
    first: dict[str, str] = {}
    for _, _, payload in installation.payloads("notification", NOTIFY):
        first.setdefault(payload["dedupe_key"], payload["preview_id"])
    records = installation.database.query("SELECT dedupe_key, preview_id FROM notification_records")
    assert Counter(records) == Counter(first.items())


def check_other_records(installation: ServicesInstallation) -> None:
    """Check tokens, snapshots, timelines and tasks."""
    query = installation.database.query
    assert Counter(query("SELECT event_id, tokens_delta FROM agent_token_ledger")) == Counter(
        (event_id, payload["tokens_delta"]) for _, event_id, payload in installation.payloads("agent", TOKENS)
    )
    newest: dict[str, Any] = {}
    for row_id, _, payload in installation.payloads("agent", "agent.state.snapshot.persist"):
        newest[payload["conversation_id"]] = (row_id, payload["snapshot_json"])
    kept = query("SELECT conversation_id, outbox_id, snapshot_json FROM agent_state_snapshot_records")
    assert {conversation: (row_id, snapshot) for conversation, row_id, snapshot in kept} == newest
    assert Counter(query("SELECT chat_id, user_id, seq, content FROM agent_timeline_events")) == Counter(
        (payload["conversation_id"], payload["user_id"], payload["seq"], payload["content"])
        for _, _, payload in installation.payloads("agent", "agent.timeline.persist.requested")
    )
    named = {
        task
        for _, _, payload in installation.payloads("task", "task.urgency.promote.requested")
        for task in payload["task_ids"]
    }
    assert dict(query("SELECT id, priority FROM tasks")) == {
        task_id: 1 if task_id in named and minutes < 0 else 2 for task_id, _, minutes in tasks_sql()
    }
