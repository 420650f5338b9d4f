"""Who may see and do what in the admin of the outbox. The rules, for all pages:

- messages and dead events of a service: the *view* permission of its outbox model (``agent.view_agentoutboxmessage``);
- the routes page: the services whose messages the user may view;
- rejected records: ``outbox.view_rejectedrecord``;
- payloads, headers and bytes: ``outbox.view_outbox_payload`` besides; without it a page says how large they are.
  So with the text of errors and tracebacks, which may quote a payload: without it there is the error's class;
- replay, give up, take a rejected record off the list, pause and resume: ``outbox.replay_outbox`` besides;
- edit: both of these.

Nobody adds, changes or deletes a row in the admin, whatever permissions they hold.
"""

from __future__ import annotations

from typing import Any, Final

from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest

from outbox.registry.catalog import service_models

REPLAY: Final = "outbox.replay_outbox"
PAYLOAD: Final = "outbox.view_outbox_payload"


def may_operate(request: HttpRequest) -> bool:
    """Say whether the user may replay, give up, pause and resume."""
    return request.user.has_perm(REPLAY)


def may_see_payload(request: HttpRequest) -> bool:
    """Say whether the user may see what events and records carry, and what errors said of it."""
    return request.user.has_perm(PAYLOAD)


def may_edit(request: HttpRequest) -> bool:
    """Say whether the user may change the payload of a dead event."""
    return may_operate(request) and may_see_payload(request)


def may_view(request: HttpRequest, model: type[Model]) -> bool:
    """Say whether the user may view the rows of ``model``."""
    options = model._meta
    return request.user.has_perm(f"{options.app_label}.{get_permission_codename('view', options)}")


def visible_services(request: HttpRequest) -> list[str]:
    """Return the services whose messages the user may view."""
    return [service for service, model in service_models().items() if may_view(request, model)]


def demand(granted: Any) -> None:
    """Refuse the request unless ``granted``.

    :raises PermissionDenied: it is not.
    """
    if not granted:
        raise PermissionDenied
