"""What an operator does to events, with the proof of who did it.

The rows are locked first, so that the journal (Django's ``LogEntry``) names exactly those that were changed; the
repository changes them. Where the service's tables are in the default database, both commit together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Model
from django.db.utils import DatabaseError, InterfaceError
from django.http import HttpRequest

from outbox import signals
from outbox.admin.rendering import visible
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import OutboxError
from outbox.fields import storable
from outbox.lifecycle import Status
from outbox.models import OutboxMessage, RejectedRecord, ServiceSwitch
from outbox.registry.catalog import repository_of, service_models
from outbox.storage.pause_flags import REASON_MAX_LENGTH, set_paused
from outbox.storage.querysets import rows_of
from outbox.storage.rejections import RejectionStore

RELAY_PART: Final = "relay"
CONSUMER_PART: Final = "consumer"
PARTS: Final = {RELAY_PART: "relay_paused", CONSUMER_PART: "consumer_paused"}


class NotDoneError(OutboxError):
    """Private to the admin. Nothing was changed; the message tells the operator why."""


def replay(request: HttpRequest, service: str, ids: Sequence[int]) -> int:
    """Send those of ``ids`` again that are dead; return how many were."""
    repository = repository_of(service)
    with _changing(repository.route):
        rows = _lock_dead(repository.route, ids)
        changed = repository.replay([row.pk for row in rows])
        _log(request, [(row, str(row.pk)) for row in rows], "Replayed.")
    _tell_replayed(request, service, rows)
    return changed


def give_up(request: HttpRequest, service: str, ids: Sequence[int], *, reason: str) -> int:
    """Take those of ``ids`` off the open list that are dead and on it; return how many were."""
    repository = repository_of(service)
    with _changing(repository.route):
        rows = [row for row in _lock_dead(repository.route, ids) if row.resolved_at is None]
        changed = repository.give_up([row.pk for row in rows], by=request.user.get_username(), reason=reason)
        _log(request, [(row, str(row.pk)) for row in rows], f"Given up: {reason[:REASON_MAX_LENGTH]}")
    return changed


def edit(
    request: HttpRequest,
    service: str,
    row_id: int,
    *,
    payload: bytes,
    unchanged_since: datetime | None,
    then_replay: bool,
) -> bool:
    """Replace the payload column of a dead row; return False when it was changed by somebody else meanwhile."""
    repository = repository_of(service)
    with _changing(repository.route):
        rows = [row for row in _lock_dead(repository.route, [row_id]) if row.updated_at == unchanged_since]
        if not rows or not repository.edit(row_id, payload=payload):
            return False
        _log(request, [(rows[0], str(row_id))], f"Payload edited{' and replayed' if then_replay else ''}.")
        if then_replay:
            repository.replay([row_id])
    if then_replay:
        _tell_replayed(request, service, rows)
    return True


def resolve_rejected(request: HttpRequest, using: str, ids: Sequence[int]) -> int:
    """Take rejected records off the open list; return how many were on it."""
    changed = 0
    with _guarded(using), transaction.atomic(using=using):
        found = (
            rows_of(RejectedRecord, using)
            .select_for_update()
            .filter(pk__in=ids)
            .order_by("pk")
            .defer("key", "value", "headers")
        )
        rows = [row for row in found if row.resolved_at is None]
        for service in sorted({row.service for row in rows}):
            changed += RejectionStore(service, using).resolve(
                [row.pk for row in rows if row.service == service], by=request.user.get_username()
            )
        _log(request, [(row, record_key(using, row.pk)) for row in rows], "Taken off the open list.")
    return changed


def set_switch(request: HttpRequest, route: ServiceRoute, *, part: str, paused: bool, reason: str) -> bool:
    """Pause or resume a part of a service; return False when it was so already."""
    column = PARTS[part]
    with _changing(route):
        by = request.user.get_username()
        changed = set_paused(route.service, route.database, column=column, paused=paused, reason=reason, by=by)
        if changed:
            why = f": {reason[:REASON_MAX_LENGTH]}" if reason else "."
            done = f"{part.capitalize()} {'paused' if paused else 'resumed'}{why}"
            _log(request, [(ServiceSwitch(pk=route.service), route.service)], done)
    return changed


def record_key(using: str, row_id: int) -> str:
    """Return what names a rejected record in an address: its id, and its database where that is not the default."""
    return str(row_id) if using == "default" else f"{using}:{row_id}"


def _lock_dead(route: ServiceRoute, ids: Sequence[int]) -> list[OutboxMessage]:
    """Lock the rows of ``ids`` by primary key, in the order of their ids, and return the dead ones."""
    model: type[OutboxMessage] = service_models()[route.service]
    found = (
        rows_of(model, route.database)
        .select_for_update()
        .filter(pk__in=ids)
        .order_by("pk")
        .only("id", "event_type", "status", "resolved_at", "updated_at")
    )
    return [row for row in found if row.status == Status.DEAD]


def _tell_replayed(request: HttpRequest, service: str, rows: Sequence[OutboxMessage]) -> None:
    if rows:
        signals.replayed.send_robust(service, ids=[row.pk for row in rows], by=request.user.get_username())


def _log(request: HttpRequest, changed: Iterable[tuple[Model, str]], message: str) -> None:
    """Write one journal entry for each (row, key in its address)."""
    user_id: Any = request.user.pk
    LogEntry.objects.bulk_create(
        [
            LogEntry(
                user_id=user_id,
                content_type=ContentType.objects.get_for_model(row, for_concrete_model=False),
                object_id=key,
                # Django's own pages show these as they are: what turns a line around must be visible in them too.
                object_repr=visible(str(row))[:200],
                action_flag=CHANGE,
                change_message=visible(storable(message)),
            )
            for row, key in changed
        ]
    )


@contextmanager
def _changing(route: ServiceRoute) -> Iterator[None]:
    with _guarded(route.database), transaction.atomic(using=route.database):
        yield


@contextmanager
def _guarded(using: str) -> Iterator[None]:
    """Turn a database that is unavailable or too busy into words; the transaction was rolled back.

    :raises NotDoneError: it is.
    """
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        kind = kind_of(error, using)
        if kind in {ErrorKind.UNAVAILABLE, ErrorKind.DISCONNECTED}:
            raise NotDoneError("The database cannot be reached: nothing was changed. Try again later.") from error
        if kind is ErrorKind.CONFLICT:
            raise NotDoneError("The rows are locked by a worker: nothing was changed. Try again.") from error
        raise
