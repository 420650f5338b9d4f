"""What the tests of the admin look at: its pages, and rows of any service on any database."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from outbox.catalog import service_models
from outbox.models import OutboxMessage, RejectedRecord, service_route

DATABASES = tuple(alias for alias in ("default", "mariadb", "postgres") if alias in django_settings.DATABASES)
SERVICES = ("agent", "task", "memory", "active-scheduler", "notification")
SNAPSHOT = "agent.state.snapshot.persist"

ROUTES = "/admin/outbox/route/"
DEAD = "/admin/outbox/deadevent/"
REJECTED = "/admin/outbox/rejectedrecord/"
MESSAGES = "/admin/agent/agentoutboxmessage/"
SNAPSHOTS = "/admin/agent/agentstatesnapshotrecord/"

REPLAY = "outbox.replay_outbox"
PAYLOAD = "outbox.view_outbox_payload"
VIEW_AGENT = "agent.view_agentoutboxmessage"
VIEW_REJECTED = "outbox.view_rejectedrecord"

SignIn = Callable[..., Client]

_offsets = itertools.count()


# --- rows --------------------------------------------------------------------------------------------------------


def model_of(service: str) -> type[OutboxMessage]:
    """Return the outbox model of ``service``."""
    return service_models()[service]


def snapshot(key: str = "conv-1", **fields: Any) -> dict[str, Any]:
    """Return a payload that keeps the contract of ``agent.state.snapshot.persist``."""
    return {"conversation_id": key, "user_id": 7, "phase": "plan", "snapshot_json": '{"a": 1}', **fields}


def stored(payload: Any, *, event_type: str = SNAPSHOT, version: str = "v1") -> str:
    """Return a payload column."""
    return json.dumps(
        {
            "event_id": "e-1",
            "event_type": event_type,
            "event_version": version,
            "aggregate_id": "conv-1",
            "payload": payload,
        }
    )


def add(service: str = "agent", *, key: str = "conv-1", payload: Any = None, **columns: Any) -> OutboxMessage:
    """Insert a row on the service's database and return it."""
    event_type = columns.pop("event_type", SNAPSHOT)
    columns.setdefault("payload", stored(snapshot(key) if payload is None else payload, event_type=event_type))
    return (
        model_of(service)
        .objects.using(service_route(service).database)
        .create(event_type=event_type, service_name=service, message_key=key, **columns)
    )


def add_dead(service: str = "agent", *, age: timedelta = timedelta(minutes=3), **columns: Any) -> OutboxMessage:
    """Insert a row that died ``age`` ago."""
    died_at = timezone.now() - age
    columns.setdefault("next_retry_at", died_at)
    return add(
        service,
        **{
            "status": "dead",
            "dead_at": died_at,
            "created_at": died_at,
            "retry_count": 20,
            "last_error": "ValueError: no such user",
            "error_class": "ValueError",
            "traceback": "Traceback (most recent call last): …",
            **columns,
        },
    )


def add_rejected(alias: str = "default", *, service: str = "agent", **columns: Any) -> RejectedRecord:
    """Insert a rejected record."""
    return RejectedRecord.objects.using(alias).create(
        **{
            "service": service,
            "topic": f"smartflow.{service}.outbox",
            "partition": 0,
            "offset": next(_offsets),
            "digest": "d" * 64,
            "headers": "[]",
            "reason": "EnvelopeError: the record has no value",
            **columns,
        }
    )


def now_of(row: OutboxMessage) -> OutboxMessage:
    """Return ``row`` as it is in the database now."""
    return type(row).objects.using(row._state.db).get(pk=row.pk)


def statuses(rows: Iterable[OutboxMessage]) -> list[str]:
    """Return what the statuses of ``rows`` are now."""
    return [now_of(row).status for row in rows]


def said(response: Any) -> list[str]:
    """Return the messages that a page (after its redirects) shows."""
    return [str(message) for message in response.context["messages"]]


def at(seconds: float) -> datetime:
    """Return a moment ``seconds`` from a fixed one in the past."""
    return datetime.fromisoformat("2026-01-01T00:00:00+00:00") + timedelta(seconds=seconds)


def journal() -> list[tuple[str, str, str]]:
    """Return who did what to which row, oldest first."""
    entries = LogEntry.objects.order_by("pk").select_related("user", "content_type")
    return [
        (entry.user.get_username(), f"{entry.content_type.model} {entry.object_id}", entry.change_message)
        for entry in entries
    ]


def log_of(row: OutboxMessage) -> str:
    return f"agentoutboxmessage {row.pk}"
