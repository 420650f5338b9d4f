"""What the installed apps declare: outbox models, event contracts, handlers; and what settings say about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning

from outbox.checks.options import SETTING, configured
from outbox.conf import OutboxSettings
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import handlers
from outbox.declarations.routes import RouteRegistry, ServiceCatalog, ServiceRoute
from outbox.exceptions import ConfigurationError, RoutingError
from outbox.models import OutboxMessage, service_route

_SHARED: Final = "Silence this where deployments with other apps share the settings."


def check_declarations() -> list[CheckMessage]:
    """Check that every model has a service, every service one route, every event a service and a handler."""
    options = configured()
    if options is None:
        return []
    return [*_models(), *_routes(), *_events(), *_handlers(), *_typing_errors(options)]


def outbox_models() -> dict[str, list[type[OutboxMessage]]]:
    """Return the concrete outbox models of each service; ``""`` stands for those that do not say which."""
    found: dict[str, list[type[OutboxMessage]]] = {}
    for model in apps.get_models():
        if issubclass(model, OutboxMessage) and not model._meta.proxy:
            service = getattr(model, "service", None)
            found.setdefault(service if isinstance(service, str) else "", []).append(model)
    return found


def valid_routes() -> dict[str, ServiceRoute]:
    """Return the routes of the declared services, without those that are not allowed."""
    return {service: route for service, route in _resolved().items() if isinstance(route, ServiceRoute)}


def _resolved() -> dict[str, ServiceRoute | ConfigurationError]:
    """Return the route of each declared service, or what is wrong with it."""
    found: dict[str, ServiceRoute | ConfigurationError] = {}
    for service, models in outbox_models().items():
        if not service:
            continue
        try:
            found[service] = service_route(service, models[0])
        except ConfigurationError as error:
            found[service] = error
    return found


def _models() -> Iterator[CheckMessage]:
    for service, models in outbox_models().items():
        if not service:
            for model in models:
                yield Error(
                    "this outbox model does not say which service it belongs to, so nothing is published into it.",
                    hint='Add `service = "…"` to the class, the name of the service that owns its events.',
                    obj=model,
                    id="outbox.E041",
                )
            continue
        for model in models:
            yield from _renamed_columns(model)
        if len(models) > 1:
            names = ", ".join(model._meta.label for model in models)
            yield Error(
                f"service {service!r} has more than one outbox model: {names}.",
                hint="A service has one outbox table: keep one of the models, or give the other its own service.",
                obj=models[-1],
                id="outbox.E042",
            )


def _renamed_columns(model: type[OutboxMessage]) -> Iterator[CheckMessage]:
    """Look for columns that the model calls otherwise: the outbox's own SQL follows it for event types only."""
    ours = {each.name for each in OutboxMessage._meta.local_concrete_fields} - {"event_type"}
    renamed = [each for each in model._meta.concrete_fields if each.name in ours and each.column != each.name]
    if renamed:
        listed = ", ".join(f"{each.name} ({each.column})" for each in renamed)
        yield Error(
            f"columns of this outbox model have names of their own: {listed}. Only that of event_type may.",
            hint="Remove db_column, and rename the column in the table.",
            obj=model,
            id="outbox.E050",
        )


def _routes() -> Iterator[CheckMessage]:
    models = outbox_models()
    for service, route in _resolved().items():
        model = models[service][0]
        if isinstance(route, ConfigurationError):
            yield Error(
                f"{route}.",
                hint="Change the name where it is given: `service` of the model, or OUTBOX['SERVICES'] and "
                "OUTBOX['NAMESPACE'].",
                obj=model,
                id="outbox.E043",
            )
        elif model._meta.db_table != route.table:
            yield Error(
                f"the model's table is {model._meta.db_table!r}, but the route of service {service!r} leads to "
                f"{route.table!r}: migrations and workers would disagree.",
                hint=f'Write `db_table = outbox_table("{service}")` in Meta, and configure the name in '
                f"OUTBOX['SERVICES']['{service}']['TABLE'].",
                obj=model,
                id="outbox.E044",
            )
    for problem in ServiceCatalog(valid_routes().values()).shared_names():
        yield Error(
            f"{problem}.",
            hint="A service keeps to itself: give each its own name in OUTBOX['SERVICES'].",
            obj=SETTING,
            id="outbox.E045",
        )


def _events() -> Iterator[CheckMessage]:
    declared = outbox_models()
    routes = valid_routes()
    registry = RouteRegistry(ServiceCatalog(routes.values()))
    for contract in contracts:
        if contract.service in declared and contract.service not in routes:
            continue  # its service is the problem, and has its own message
        try:
            registry.register(contract.event_type, contract.service)
        except (RoutingError, ConfigurationError) as error:
            yield Error(
                f"event type {contract.event_type!r} cannot be routed: {error}",
                hint=f"Correct @event(…) of {contract.payload_type.__module__}.{contract.payload_type.__qualname__}, "
                f"or install the app that declares the outbox model of its service.",
                id="outbox.E046",
            )


def _handlers() -> Iterator[CheckMessage]:
    with_contract = {contract.event_type for contract in contracts}
    for event_type in handlers:
        if event_type not in with_contract:
            yield Error(
                f"event type {event_type!r} has a handler and no contract: its events can neither be published nor "
                f"decoded.",
                hint="Declare it with @event(…) in the events.py of the app that owns it, or remove the handler.",
                id="outbox.E047",
            )
    for service, models in outbox_models().items():
        missing = [
            contract.event_type for contract in contracts.of_service(service) if contract.event_type not in handlers
        ]
        if missing:
            yield CheckWarning(
                f"event types of service {service!r} have no handler here: {', '.join(missing)}. A consumer of this "
                f"deployment makes their events dead.",
                hint="Declare one with @handles(…) in a handlers.py. Where another deployment consumes the service, "
                "silence this warning.",
                obj=models[0],
                id="outbox.W041",
            )


def _typing_errors(options: OutboxSettings) -> Iterator[CheckMessage]:
    services = outbox_models()
    for service in options.services:
        if service not in services:
            yield Error(
                f"SERVICES configures {service!r}, and no installed app declares such a service.",
                hint=f"Known services: {', '.join(sorted(filter(None, services))) or 'none'}. {_SHARED}",
                obj=SETTING,
                id="outbox.E048",
            )
    event_types = sorted(contract.event_type for contract in contracts)
    for event_type in options.events:
        if event_type not in event_types:
            yield Error(
                f"EVENTS configures {event_type!r}, and no installed app declares such an event type.",
                hint=f"Known event types: {', '.join(event_types) or 'none'}. {_SHARED}",
                obj=SETTING,
                id="outbox.E049",
            )
