"""Which rows a list asks for, and along which index each question is answered.

=====================  =========================================  =====================================
asked for              read along                                 looked at row by row
=====================  =========================================  =====================================
nothing                primary key                                event type
a status               ``*_ob_due`` (status, next_retry_at, id)   event type (in the index), and the rest
a key                  ``*_ob_key`` (key, status, id)             event type
=====================  =========================================  =====================================

What is looked at row by row is bounded by the scan's window (``outbox.storage.index_scans``): no question reads a whole
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.http import HttpRequest

from outbox.declarations.contracts import contracts
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status
from outbox.storage.index_scans import WINDOW, Condition, IndexScan

OPEN: Final = "open"
GIVEN_UP: Final = "given-up"
ALL: Final = "all"

SEQUENTIAL_WINDOW: Final = 50_000
"""So many a scan looks at when the filter's column lies in the index, or the rows in the order of the scan."""


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """What the list of a service's messages is asked for."""

    status: str = ""
    event_type: str = ""
    key: str = ""

    @classmethod
    def of(cls, request: HttpRequest) -> MessageFilter:
        """Read the query string; an unknown status asks for none."""
        status = request.GET.get("status", "")
        return cls(
            status=status if status in set(Status) else "",
            event_type=_clean(request.GET.get("event_type", "")),
            key=_clean(request.GET.get("key", "")),
        )

    def scans(self, route: ServiceRoute) -> dict[str, IndexScan]:
        """Return the scans whose merged rows are the answer."""
        filters = (Condition(route.type_column, "= %s", (self.event_type,)),) if self.event_type else ()
        if self.key:
            # One scan for each status: within (key, status) the index is in the order of ids.
            statuses = [self.status] if self.status else [status.value for status in Status]
            window = WINDOW // len(statuses)
            return {status: _by_key(route, self.key, status, filters, window=window) for status in statuses}
        if self.status:
            return {self.status: _by_status(route, self.status, filters, window=SEQUENTIAL_WINDOW)}
        return {"all": IndexScan(using=route.database, table=route.table, filters=filters, window=SEQUENTIAL_WINDOW)}


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """What the page of dead events is asked for."""

    service: str = ""
    event_type: str = ""
    error_class: str = ""
    state: str = OPEN

    @classmethod
    def of(cls, request: HttpRequest) -> DeadFilter:
        """Read the query string; an unknown state asks for the open ones."""
        state = request.GET.get("state", "")
        return cls(
            service=request.GET.get("service", ""),
            event_type=_clean(request.GET.get("event_type", "")),
            error_class=_clean(request.GET.get("error_class", "")),
            state=state if state in {GIVEN_UP, ALL} else OPEN,
        )

    def scan(self, route: ServiceRoute) -> IndexScan:
        """Return the scan of one service's dead rows, those that died last first."""
        return _by_status(route, Status.DEAD.value, self._filters(route), window=WINDOW)

    def scan_of_key(self, route: ServiceRoute, key: str) -> IndexScan:
        """Return the scan of the dead rows of one key, by id."""
        return _by_key(route, key, Status.DEAD.value, self._filters(route), window=WINDOW)

    def _filters(self, route: ServiceRoute) -> tuple[Condition, ...]:
        filters = []
        if self.event_type:
            filters.append(Condition(route.type_column, "= %s", (self.event_type,)))
        if self.error_class:
            filters.append(Condition("error_class", "= %s", (self.error_class,)))
        if self.state == OPEN:
            filters.append(Condition("resolved_at", "IS NULL"))
        elif self.state == GIVEN_UP:
            filters.append(Condition("resolved_at", "IS NOT NULL"))
        return tuple(filters)


def known_event_types(service: str, also: set[str]) -> list[str]:
    """Return what to offer as event types: those that the service owns, and ``also`` what the page shows."""
    return sorted({contract.event_type for contract in contracts.of_service(service)} | also)


def _by_status(route: ServiceRoute, status: str, filters: tuple[Condition, ...], *, window: int) -> IndexScan:
    return IndexScan(
        using=route.database,
        table=route.table,
        where=(Condition("status", "= %s", (status,)),),
        moment="next_retry_at",
        rank="next_retry_at",
        filters=filters,
        window=window,
    )


def _by_key(route: ServiceRoute, key: str, status: str, filters: tuple[Condition, ...], *, window: int) -> IndexScan:
    return IndexScan(
        using=route.database,
        table=route.table,
        where=(Condition("message_key", "= %s", (key,)), Condition("status", "= %s", (status,))),
        filters=filters,
        window=window,
    )


def _clean(text: str) -> str:
    """Return what a person typed without the blanks around it; a NUL would be refused by PostgreSQL."""
    return text.replace("\x00", "").strip()
