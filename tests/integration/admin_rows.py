"""What the tests of the admin look at: its pages, and rows of any service on any database, or of every table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import (
    BinaryField,
    BooleanField,
    CharField,
    DateTimeField,
    GeneratedField,
    Model,
    TextField,
)
from django.test import Client
from django.urls import URLPattern, reverse
from django.utils import timezone

from agent_events.notification.models import NotificationRecord
from outbox.models import OutboxMessage, RejectedRecord, service_route
from outbox.registry.catalog import service_models

DATABASES = tuple(alias for alias in ("default", "mariadb", "mysql", "postgres") if alias in django_settings.DATABASES)
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

HIDDEN = "only-for-those-who-may-see-it"

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


# --- every table -------------------------------------------------------------------------------------------------


def tables() -> list[type[Model]]:
    """Return the models whose rows the admin shows, Django's own left out."""
    ours = [model for model in admin.site._registry if not model.__module__.startswith("django.")]
    return [model for model in ours if model._meta.managed]


def contents(model: type[Model]) -> list[str]:
    """Return the columns that hold what an event carried, or what an error quoted of it: texts without a limit."""
    return [
        field.name
        for field in model._meta.concrete_fields
        if isinstance(field, (TextField, BinaryField)) or (model._meta.db_table, field.name) == ("tasks", "title")
    ]


def filled(model: type[Model], text: str, number: int = 1, **columns: Any) -> Model:
    """Insert a row on the default database whose texts are all ``text`` and whose numbers are all ``number``."""
    for field in model._meta.concrete_fields:
        if field.name in columns or field.primary_key or isinstance(field, GeneratedField):
            continue
        if isinstance(field, BinaryField):
            columns[field.name] = text.encode()
        elif isinstance(field, (CharField, TextField)):
            columns[field.name] = text[: field.max_length]
        elif isinstance(field, DateTimeField):
            columns[field.name] = timezone.now()
        else:
            columns[field.name] = False if isinstance(field, BooleanField) else number
    return model._default_manager.create(**columns)


class Page:
    """An address of the admin, and what its name is without the model's."""

    def __init__(self, model: type[Model], pattern: URLPattern) -> None:
        self.model = model
        prefix = f"{model._meta.app_label}_{model._meta.model_name}_"
        self.name = (pattern.name or "").removeprefix(prefix)
        self.full_name = pattern.name
        self._arguments = list(pattern.pattern.converters)

    def url(self, row_id: Any) -> str:
        values = {"service": "agent", "part": "relay"}
        kwargs = {name: values.get(name, row_id) for name in self._arguments}
        return reverse(f"admin:{self.full_name}", kwargs=kwargs)


def pages() -> Iterator[Page]:
    """Find the pages of every model by the admin's resolver, Django's own models left out."""
    for model, registered in admin.site._registry.items():
        if model.__module__.startswith("django."):
            continue
        for pattern in registered.get_urls():
            if pattern.name is not None:  # the one without a name leads to the page of the row
                yield Page(model, pattern)


def secret_row(model: type[Model], text: str, number: int = 1, **columns: Any) -> Model:
    """Insert a row that holds ``text`` in the columns that are not for everybody, and nothing of it in any other."""
    binary = [field.name for field in model._meta.concrete_fields if isinstance(field, BinaryField)]
    hidden: dict[str, Any] = {name: text.encode() if name in binary else text for name in contents(model)}
    if model is RejectedRecord:
        columns["resolved_at"] = None
    return filled(model, f"seen-{number}", number, **hidden, **columns)


def secret_rows() -> dict[type[Model], Any]:
    """Insert a row with ``HIDDEN`` into every table, the events dead, and return their keys."""
    made: dict[type[Model], Any] = {}
    for model in tables():
        columns: dict[str, Any] = {"status": "dead"} if model is NotificationRecord else {}
        made[model] = secret_row(model, HIDDEN, **columns).pk
    for service in SERVICES:
        texts = {"last_error": f"ValueError: {HIDDEN}", "traceback": HIDDEN}
        made[model_of(service)] = add_dead(service, payload=snapshot(phase=HIDDEN), **texts).pk
    return made


def names(*actions: str) -> tuple[str, ...]:
    """Return the permissions of ``actions`` on every table of ours."""
    return tuple(
        f"{model._meta.app_label}.{action}_{model._meta.model_name}" for model in tables() for action in actions
    )
