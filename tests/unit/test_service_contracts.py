"""The eight events of SmartFlow: who owns them, how they are keyed, and what their payloads may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from agent_events.active_scheduler.candidates import Trigger, propose_due_task
from agent_events.active_scheduler.checks import check_preview_builder
from agent_events.agent.events import AgentStateSnapshot, ChatHistoryPersistRequested
from agent_events.conf import smartflow_settings
from agent_events.memory.events import idempotency_key, memory_extract
from agent_events.notification.events import dedupe_key
from outbox.declarations.contracts import contracts
from outbox.exceptions import ConfigurationError, InvalidEventError, PayloadError

MOMENT = "2026-03-01T08:30:00.5+08:00"

SNAPSHOT = {"conversation_id": "Conv-1", "user_id": 7, "phase": "plan", "snapshot_json": "{}"}
HISTORY = {"user_id": 7, "conversation_id": "Conv-1", "role": "user", "message": "Hi", "tokens_consumed": 0}
TOKENS = {
    "user_id": 7,
    "conversation_id": "Conv-1",
    "tokens_delta": 5,
    "reason": "title",
    "triggered_at": MOMENT,
}
TIMELINE = {"user_id": 7, "conversation_id": "Conv-1", "seq": 1, "kind": "text", "tokens_consumed": 0}
EXTRACT = {
    "user_id": 7,
    "conversation_id": "Conv-1",
    "source_role": "user",
    "source_text": "Hi",
    "occurred_at": MOMENT,
    "idempotency_key": "memory_extract_7_0",
}
URGENCY = {"user_id": 7, "task_ids": [3, 4], "triggered_at": MOMENT}
TRIGGERED = {
    "trigger_id": "t-1",
    "user_id": 7,
    "trigger_type": "important_urgent_task",
    "source": "api_trigger",
    "target_type": "task_pool",
    "target_id": 3,
    "is_mock_time": False,
    "requested_at": MOMENT,
}
FEISHU = {
    "user_id": 7,
    "trigger_id": "t-1",
    "preview_id": "p-1",
    "trigger_type": "important_urgent_task",
    "target_type": "task_pool",
    "target_id": 3,
    "dedupe_key": "7:important_urgent_task:2026-03-01T00:30:00Z",
    "target_url": "/assistant/p-1",
    "requested_at": MOMENT,
}

EVENTS = [
    ("agent.state.snapshot.persist", "v1", "agent", "Conv-1", "Conv-1", SNAPSHOT),
    ("chat.history.persist.requested", "v1", "agent", "Conv-1", "Conv-1", HISTORY),
    ("chat.token.usage.adjust.requested", "v1", "agent", "Conv-1", "7:Conv-1", TOKENS),
    ("agent.timeline.persist.requested", "v1", "agent", "Conv-1", "Conv-1", TIMELINE),
    ("memory.extract.requested", "v1", "memory", "Conv-1", "Conv-1", EXTRACT),
    ("task.urgency.promote.requested", "v1", "task", "7", "7", URGENCY),
    ("active_schedule.triggered", "1", "active-scheduler", "7", "t-1", TRIGGERED),
    ("notification.feishu.requested", "1", "notification", "7", "p-1", FEISHU),
]


def decoded(event_type: str, payload: dict[str, Any]) -> Any:
    contract = contracts.get(event_type)
    return contract.decode(msgspec.json.encode(payload), version=contract.version)


@pytest.mark.parametrize(("event_type", "version", "service", "key", "aggregate_id", "payload"), EVENTS)
def test_event_has_its_owner_version_key_and_aggregate_id(
    event_type: str, version: str, service: str, key: str, aggregate_id: str, payload: dict[str, Any]
) -> None:
    contract = contracts.get(event_type)
    event = decoded(event_type, payload)
    assert (contract.version, contract.service) == (version, service)
    assert (contract.message_key(event), str(contract.aggregate_id(event))) == (key, aggregate_id)
    assert contract.decode(contract.encode(event), version=version) == event


@pytest.mark.parametrize(("event_type", "payload"), [(each[0], each[5]) for each in EVENTS])
def test_every_field_without_a_default_is_needed(event_type: str, payload: dict[str, Any]) -> None:
    for name in payload:
        with pytest.raises(PayloadError, match=name):
            decoded(event_type, {other: value for other, value in payload.items() if other != name})


@pytest.mark.parametrize(("event_type", "payload"), [(each[0], each[5]) for each in EVENTS])
def test_user_id_is_above_zero(event_type: str, payload: dict[str, Any]) -> None:
    for user_id in (0, -1, "7", 2**63):
        with pytest.raises(PayloadError, match="user_id"):
            decoded(event_type, payload | {"user_id": user_id})


@pytest.mark.parametrize(("event_type", "payload"), [(each[0], each[5]) for each in EVENTS])
def test_null_is_as_good_as_absent_for_optional_fields(event_type: str, payload: dict[str, Any]) -> None:
    fields = msgspec.structs.fields(contracts.get(event_type).payload_type)
    absent = {field.name: None for field in fields if not field.required}
    assert decoded(event_type, payload | absent) == decoded(event_type, payload)


@pytest.mark.parametrize(
    ("event_type", "payload", "name", "wrong"),
    [
        ("agent.state.snapshot.persist", SNAPSHOT, "conversation_id", ""),
        ("agent.state.snapshot.persist", SNAPSHOT, "conversation_id", "c" * 129),
        ("agent.state.snapshot.persist", SNAPSHOT, "conversation_id", "Conv-1 "),
        ("agent.state.snapshot.persist", SNAPSHOT, "conversation_id", "Conv-1\n"),
        ("agent.state.snapshot.persist", SNAPSHOT, "phase", "p" * 33),
        ("agent.state.snapshot.persist", SNAPSHOT, "snapshot_json", "\x00"),
        ("agent.state.snapshot.persist", SNAPSHOT, "snapshot_json", {}),
        ("chat.history.persist.requested", HISTORY, "role", ""),
        ("chat.history.persist.requested", HISTORY, "message", None),
        ("chat.history.persist.requested", HISTORY, "message", "a\x00b"),
        ("chat.history.persist.requested", HISTORY, "tokens_consumed", -1),
        ("chat.history.persist.requested", HISTORY, "reasoning_duration_seconds", -1),
        ("chat.token.usage.adjust.requested", TOKENS, "tokens_delta", 0),
        ("chat.token.usage.adjust.requested", TOKENS, "reason", ""),
        ("chat.token.usage.adjust.requested", TOKENS, "triggered_at", "2026-03-01T08:30:00"),
        ("chat.token.usage.adjust.requested", TOKENS, "triggered_at", "9999-12-31T23:59:59-01:00"),
        ("agent.timeline.persist.requested", TIMELINE, "seq", 0),
        ("agent.timeline.persist.requested", TIMELINE, "kind", ""),
        ("memory.extract.requested", EXTRACT, "source_text", ""),
        ("memory.extract.requested", EXTRACT, "idempotency_key", ""),
        ("memory.extract.requested", EXTRACT, "assistant_id", "a" * 129),
        ("task.urgency.promote.requested", URGENCY, "task_ids", []),
        ("task.urgency.promote.requested", URGENCY, "task_ids", [3, 3]),
        ("task.urgency.promote.requested", URGENCY, "task_ids", [-3]),
        ("active_schedule.triggered", TRIGGERED, "trigger_type", "whim"),
        ("active_schedule.triggered", TRIGGERED, "source", "api_dry_run"),
        ("active_schedule.triggered", TRIGGERED, "target_type", "habit"),
        ("active_schedule.triggered", TRIGGERED, "target_id", 0),
        ("active_schedule.triggered", TRIGGERED | {"trigger_type": "unfinished_feedback"}, "target_id", -1),
        ("active_schedule.triggered", TRIGGERED, "dedupe_key", "d" * 129),
        ("notification.feishu.requested", FEISHU, "target_url", "https://example.com/assistant/"),
        ("notification.feishu.requested", FEISHU, "target_url", "//example.com/assistant/"),
        ("notification.feishu.requested", FEISHU, "target_url", "/elsewhere/"),
        ("notification.feishu.requested", FEISHU, "dedupe_key", ""),
    ],
)
def test_payload_that_breaks_a_rule_is_refused_with_the_field(
    event_type: str, payload: dict[str, Any], name: str, wrong: Any
) -> None:
    with pytest.raises(PayloadError, match=name):
        decoded(event_type, payload | {name: wrong})


@pytest.mark.parametrize("trigger_type", ["important_urgent_task", "unfinished_feedback"])
@pytest.mark.parametrize("source", ["worker_due_job", "api_trigger", "user_feedback"])
@pytest.mark.parametrize("target_type", ["task_pool", "schedule_event", "task_item"])
def test_triggers_that_are_allowed(trigger_type: str, source: str, target_type: str) -> None:
    named = {"trigger_type": trigger_type, "source": source, "target_type": target_type}
    assert decoded("active_schedule.triggered", TRIGGERED | named).target_id == 3


def test_feedback_needs_no_target() -> None:
    feedback = {"trigger_type": "unfinished_feedback", "target_id": 0}
    assert decoded("active_schedule.triggered", TRIGGERED | feedback).target_id == 0


def test_ids_may_hold_blanks_inside() -> None:
    assert decoded("chat.history.persist.requested", HISTORY | {"conversation_id": "a b\n c"}).conversation_id


def test_publisher_is_told_the_field_before_anything_is_written() -> None:
    event = ChatHistoryPersistRequested(
        user_id=7, conversation_id="Conv-1", role="user", message="a\x00b", tokens_consumed=0
    )
    with pytest.raises(InvalidEventError, match="'message'"):
        contracts.of(event).encode(event)


def test_snapshot_of_megabytes_is_checked_quickly_and_kept_whole() -> None:
    event = AgentStateSnapshot(conversation_id="c", user_id=7, phase="", snapshot_json='{"a":"日"}' * 300_000)
    contract = contracts.of(event)
    assert contract.decode(contract.encode(event), version="v1") == event


# --- keys --------------------------------------------------------------------------------------------------------


def test_idempotency_key_is_made_of_the_whole_text() -> None:
    # printf '7|Conv-1|Hi' | sha256sum
    assert idempotency_key(user_id=7, conversation_id="Conv-1", text="Hi") == "memory_extract_7_6f59b36616e9ad84"
    long, longer = "x" * 1_500, "x" * 1_501
    events = [memory_extract(user_id=7, conversation_id="c", source_role="user", source_text=t) for t in (long, longer)]
    assert events[0].source_text == events[1].source_text
    assert events[0].idempotency_key != events[1].idempotency_key


@pytest.mark.parametrize(
    ("moment", "window"),
    [
        ("2026-03-01T08:00:00+00:00", "2026-03-01T08:00:00Z"),
        ("2026-03-01T08:29:59.999999+00:00", "2026-03-01T08:00:00Z"),
        ("2026-03-01T08:30:00+00:00", "2026-03-01T08:30:00Z"),
        ("2026-03-01T13:29:00+05:30", "2026-03-01T07:30:00Z"),
    ],
)
def test_users_are_told_once_in_half_an_hour(moment: str, window: str) -> None:
    at = datetime.fromisoformat(moment).astimezone(UTC)
    assert dedupe_key(user_id=7, trigger_type="t", requested_at=at) == f"7:t:{window}"


# --- settings ----------------------------------------------------------------------------------------------------


def test_settings_have_defaults_and_refuse_what_they_do_not_know(settings: Any) -> None:
    del settings.SMARTFLOW
    assert smartflow_settings().memory_enabled is True
    for wrong in ({"MEMORY_ENABLED": "no"}, {"MEMORY_ENABELD": False}):
        settings.SMARTFLOW = wrong
        with pytest.raises(ConfigurationError, match=r"settings\.SMARTFLOW"):
            smartflow_settings()


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ({}, []),
        ({"PREVIEW_BUILDER": "agent_events.nowhere.build"}, ["active_scheduler.E001"]),
        ({"PREVIEW_BUILDER": "agent_events.conf.__name__"}, ["active_scheduler.E001"]),
        ({"PREVIEW_BUILDER": 3}, ["active_scheduler.E001"]),
    ],
    ids=str,
)
def test_check_of_the_preview_builder(settings: Any, configured: dict[str, Any], expected: list[str]) -> None:
    settings.SMARTFLOW = configured
    assert [found.id for found in check_preview_builder()] == expected


def test_default_builder_needs_the_task_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(apps.app_configs, "task")
    assert [found.id for found in check_preview_builder()] == ["active_scheduler.E002"]
    due = Trigger(
        trigger_id="t-1",
        user_id=7,
        trigger_type="important_urgent_task",
        source="api_trigger",
        target_type="task_pool",
        target_id=3,
        now=datetime.fromisoformat(MOMENT),
    )
    with pytest.raises(ImproperlyConfigured, match="PREVIEW_BUILDER"):
        propose_due_task(due)
