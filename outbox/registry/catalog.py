"""The project's own services: what is built from installed outbox models and from settings, once in each process."""

from __future__ import annotations

import time
from functools import lru_cache

from django.apps import apps

from outbox.conf import on_settings_reset, outbox_settings
from outbox.coordination.wakeups import Hints, MeetingPlace, meeting_place
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import RouteRegistry, ServiceCatalog
from outbox.models import OutboxMessage, service_route
from outbox.storage.repository import OutboxRepository


@lru_cache(maxsize=1)
def service_models() -> dict[str, type[OutboxMessage]]:
    """Return the concrete outbox model of each service, in the order of installed apps."""
    return {
        model.service: model
        for model in apps.get_models()
        if issubclass(model, OutboxMessage) and hasattr(model, "service") and not model._meta.proxy
    }


@lru_cache(maxsize=1)
def route_registry() -> RouteRegistry:
    """Return the registry of the project: every service that has a model, every event type that has a contract.

    :raises UnknownServiceError: a contract names a service that no installed app declares.
    """
    were_shared = any(getattr(app, "outbox_tables_were_shared", False) for app in apps.get_app_configs())
    routes = ServiceCatalog(service_route(*declared) for declared in service_models().items())
    registry = RouteRegistry(routes, tables_were_shared=were_shared)
    for contract in contracts:
        registry.register(contract.event_type, contract.service)
    return registry


@on_settings_reset
def forget_routes() -> None:
    """Build the registry anew on next use: settings changed, or a contract was declared late."""
    route_registry.cache_clear()


def repository_of(service: str) -> OutboxRepository:
    """Return the repository of ``service``.

    :raises UnknownServiceError: nobody declared it.
    """
    registry = route_registry()
    return OutboxRepository(registry.catalog.route(service), registry.foreign_types(service))


def wake_up_place() -> MeetingPlace | None:
    """Return where publishers and relays of this project meet on this host; None: nowhere."""
    configured = outbox_settings()
    return meeting_place(configured.relay.wake_up_folder, configured.namespace)


@lru_cache(maxsize=1)
def relay_hints() -> Hints:
    """Return this process's way of waking relays on this host."""
    return Hints(wake_up_place(), clock=time.monotonic)


@on_settings_reset
def forget_hints() -> None:
    """Look elsewhere on next use: settings changed."""
    if relay_hints.cache_info().currsize:
        relay_hints().close()
        relay_hints.cache_clear()
