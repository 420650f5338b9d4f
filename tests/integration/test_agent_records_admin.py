"""The admin of the services' records: lists, each filter, and pages that show contents to those who may see them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from agent_events.active_scheduler.models import ActiveSchedulePreview, ActiveScheduleTrigger
from agent_events.agent.models import AgentChat, AgentTimelineEvent, ChatHistory, TokenLedgerEntry
from agent_events.memory.models import MemoryJob
from agent_events.task.models import Task
from outbox.admin import RecordAdmin

MOMENT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
SECRET = "only for those who may see contents"

CHAT = {"conversation_id": "talk", "user_id": 7}
TARGET = {"user_id": 7, "trigger_type": "important_urgent_task", "target_type": "task_pool", "target_id": 1}
RECORDS: list[tuple[type[Model], dict[str, Any]]] = [
    (AgentChat, CHAT),
    (ChatHistory, CHAT | {"event_id": "e-1", "role": "user", "message": SECRET}),
    (TokenLedgerEntry, CHAT | {"event_id": "e-1", "tokens_delta": 5, "reason": "title", "triggered_at": MOMENT}),
    (AgentTimelineEvent, {"chat_id": "talk", "user_id": 7, "seq": 1, "kind": "text", "content": SECRET}),
    (
        MemoryJob,
        CHAT | {"idempotency_key": "k-1", "source_role": "user", "source_text": SECRET, "occurred_at": MOMENT},
    ),
    (Task, {"user_id": 7, "title": SECRET}),
    (ActiveScheduleTrigger, TARGET | {"trigger_id": "t-1", "source": "api_trigger", "payload_json": f'"{SECRET}"'}),
    (
        ActiveSchedulePreview,
        TARGET | {"trigger_id": "t-1", "preview_id": "p-1", "summary": SECRET, "candidates_json": f'"{SECRET}"'},
    ),
]


def _client_with(model: type[Model], *others: str) -> Client:
    user = User.objects.create_user("viewer", password="viewer", is_staff=True)
    names = [f"view_{model._meta.model_name}", *others]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(user)
    return client


def _page(model: type[Model], page: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "columns"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))
def test_lists_and_pages_keep_contents_from_those_who_may_not_see_them(
    model: type[Model], columns: dict[str, Any]
) -> None:
    row = model._default_manager.create(**columns)
    client = _client_with(model)
    listed = client.get(_page(model, "changelist"))
    shown = client.get(_page(model, "change", row.pk))
    assert (listed.status_code, shown.status_code) == (200, 200)
    assert SECRET not in listed.content.decode() + shown.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "columns"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))
def test_page_shows_contents_to_those_who_may_see_them(model: type[Model], columns: dict[str, Any]) -> None:
    row = model._default_manager.create(**columns)
    shown = _client_with(model, "view_outbox_payload").get(_page(model, "change", row.pk)).content.decode()
    assert (SECRET in shown) == any(SECRET in str(value) for value in columns.values())


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "columns"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_filter_finds_its_rows_along_an_index(model: type[Model], columns: dict[str, Any]) -> None:
    row = model._default_manager.create(**columns)
    row.refresh_from_db()
    registered = admin.site._registry[model]
    assert isinstance(registered, RecordAdmin)
    client = _client_with(model)
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
    indexes = [found for found in constraints.values() if found["index"] or found["unique"]]
    leading = {found["columns"][0] for found in indexes if found["columns"]}
    for name in registered.filter_columns:
        assert name in leading
        change_page = _page(model, "change", row.pk)
        assert change_page in client.get(_page(model, "changelist"), {name: getattr(row, name)}).content.decode()
        assert change_page not in client.get(_page(model, "changelist"), {name: "99999"}).content.decode()
