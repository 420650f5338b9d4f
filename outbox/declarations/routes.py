"""``event_type -> service -> table/topic/group``: the only way from an event to a table. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from outbox.exceptions import ConfigurationError, EventOwnerConflictError, UnknownEventTypeError, UnknownServiceError

_SERVICE_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
TYPE_COLUMN: Final = "event_type"
"""What the column of event types is called where the service's model does not say otherwise."""


@dataclass(frozen=True, slots=True)
class ServiceRoute:
    """Where the events of one service live and travel: the names of its table, topic and consumer group.

    ``database`` is the alias that the table is on.
    """

    service: str
    table: str
    topic: str
    group: str
    database: str = "default"
    type_column: str = TYPE_COLUMN
    """The column of event types, by the service's model: a table shared with other software may call it otherwise."""
    whole_payload_bytes: int | None = None
    """Payloads of up to this length travel inside their records, and larger ones are refused; None: large ones stay in
    their rows. By the service's model: other software that reads the topic may not know records without a payload."""

    def __post_init__(self) -> None:
        if len(self.service) > 64 or not _SERVICE_NAME.fullmatch(self.service):
            raise ConfigurationError(
                f"service name {self.service!r} is not allowed: use lower-case words joined by '-', "
                f"64 characters at most"
            )
        if not _TABLE_NAME.fullmatch(self.table):
            raise ConfigurationError(
                f"table {self.table!r} of service {self.service!r} is not allowed: use letters, digits and '_', "
                f"64 characters at most"
            )
        if not _TABLE_NAME.fullmatch(self.type_column):
            raise ConfigurationError(
                f"column {self.type_column!r} for the event types of service {self.service!r} is not allowed: use "
                f"letters, digits and '_', 64 characters at most"
            )
        if len(self.topic) > 128 or not _TOPIC_NAME.fullmatch(self.topic) or self.topic in {".", ".."}:
            raise ConfigurationError(
                f"topic {self.topic!r} of service {self.service!r} is not allowed: use letters, digits, '.', '_' and "
                f"'-', 128 characters at most"
            )
        if self.whole_payload_bytes is not None and self.whole_payload_bytes < 1:
            raise ConfigurationError(
                f"whole_payload_bytes of service {self.service!r} is {self.whole_payload_bytes}: give a number of "
                f"bytes above 0, or None"
            )
        if not self.group:
            raise ConfigurationError(f"group of service {self.service!r} is empty: name a consumer group")

    @classmethod
    def by_rule(
        cls,
        service: str,
        *,
        namespace: str,
        table: str | None = None,
        topic: str | None = None,
        group: str | None = None,
        database: str | None = None,
        type_column: str = TYPE_COLUMN,
        whole_payload_bytes: int | None = None,
    ) -> ServiceRoute:
        """Return the route of ``service``; every name that is not given follows from the service's name.

        ``x-y`` gets ``x_y_outbox_messages``, ``<namespace>.x-y.outbox`` and ``<namespace>-x-y-outbox-consumer``.
        """
        return cls(
            service=service,
            table=table or f"{service.replace('-', '_')}_outbox_messages",
            topic=topic or f"{namespace}.{service}.outbox",
            group=group or f"{namespace}-{service}-outbox-consumer",
            database=database or "default",
            type_column=type_column,
            whole_payload_bytes=whole_payload_bytes,
        )


class ServiceCatalog:
    """The routes of all services, by name."""

    def __init__(self, routes: Iterable[ServiceRoute] = ()) -> None:
        self._routes: dict[str, ServiceRoute] = {}
        for route in routes:
            if self._routes.setdefault(route.service, route) != route:
                raise ConfigurationError(f"service {route.service!r} has two routes; keep one of them")

    def __iter__(self) -> Iterator[ServiceRoute]:
        return iter(self._routes.values())

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, service: object) -> bool:
        return service in self._routes

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(self._routes)

    def route(self, service: str) -> ServiceRoute:
        """Return the route of ``service``.

        :raises UnknownServiceError: nobody declared it.
        """
        try:
            return self._routes[service]
        except KeyError:
            raise UnknownServiceError(service, self._routes) from None

    def shared_names(self) -> list[str]:
        """Name every table, topic or group that two services share, in words; empty when all is well."""
        problems = []
        seen: dict[tuple[str, str], str] = {}
        for route in self:
            for kind, name in (
                ("table", f"{route.database}.{route.table}"),
                ("topic", route.topic),
                ("consumer group", route.group),
            ):
                other = seen.setdefault((kind, name), route.service)
                if other != route.service:
                    problems.append(f"services {other!r} and {route.service!r} share the {kind} {name!r}")
        return problems


class RouteRegistry:
    """Which service owns which event type, over a catalog of services.

    ``tables_were_shared``: a service's table may hold rows of event types that other services own.
    """

    def __init__(self, catalog: ServiceCatalog, *, tables_were_shared: bool = False) -> None:
        self.catalog = catalog
        self.tables_were_shared = tables_were_shared
        self._owners: dict[str, str] = {}

    def register(self, event_type: str, service: str) -> None:
        """Make ``service`` the owner of ``event_type``; the same registration again is harmless.

        :raises EventOwnerConflictError: another service owns it.
        :raises UnknownServiceError: the catalog has no such service.
        """
        if not event_type or len(event_type) > 64:
            raise ConfigurationError(
                f"event type {event_type!r} is not allowed: 1 to 64 characters, as the column event_type holds"
            )
        self.catalog.route(service)
        owner = self._owners.setdefault(event_type, service)
        if owner != service:
            raise EventOwnerConflictError(event_type, owner=owner, claimed_by=service)

    def resolve(self, event_type: str) -> ServiceRoute:
        """Return the route of the service that owns ``event_type``.

        :raises UnknownEventTypeError: nobody registered it.
        """
        try:
            return self.catalog.route(self._owners[event_type])
        except KeyError:
            raise UnknownEventTypeError(event_type) from None

    def event_types(self, service: str) -> tuple[str, ...]:
        """Return the event types that ``service`` owns, sorted."""
        return tuple(sorted(event_type for event_type, owner in self._owners.items() if owner == service))

    def foreign_types(self, service: str) -> tuple[str, ...]:
        """Return the event types, sorted, whose rows are to be left out of the table of ``service``.

        They are those of other services where tables were shared; else no such row is there, and none is looked for.
        """
        return self.types_of_others(service) if self.tables_were_shared else ()

    def types_of_others(self, service: str) -> tuple[str, ...]:
        """Return the event types that other services own, sorted."""
        return tuple(sorted(event_type for event_type, owner in self._owners.items() if owner != service))
