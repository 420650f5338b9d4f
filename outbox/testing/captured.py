"""What was published within a block of a test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, overload

import msgspec
from django.db.models import QuerySet

from outbox.declarations.contracts import contracts
from outbox.declarations.routes import ServiceRoute
from outbox.models import OutboxMessage
from outbox.registry.catalog import service_models
from outbox.storage.querysets import rows_of
from outbox.wire.envelope import decode_envelope
from outbox.workers.build import routes_of

P = TypeVar("P", bound=msgspec.Struct)


class CapturedEvent(NamedTuple):
    """A published event; equal to the plain pair ``(event_type, payload)``."""

    event_type: str
    payload: msgspec.Struct


class CapturedEvents(Sequence[CapturedEvent]):
    """The events published since it was made: service by service, each in the order of publication.

    It reads the outbox tables whenever it is looked at, so a publish that was rolled back is not among them; after the
    end of its ``with`` block it stays as it was there.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._routes = routes_of(services)
        self._before = {route.service: _last_id(route) for route in self._routes}
        self._kept: list[CapturedEvent] | None = None

    def keep(self) -> None:
        """Stay as it is now."""
        self._kept = self._read()

    def of(self, payload_type: type[P]) -> list[P]:
        """Return the payloads of one contract."""
        return [event.payload for event in self if isinstance(event.payload, payload_type)]

    @property
    def event_types(self) -> list[str]:
        return [event.event_type for event in self]

    @overload
    def __getitem__(self, index: int) -> CapturedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[CapturedEvent]: ...
    def __getitem__(self, index: int | slice) -> CapturedEvent | list[CapturedEvent]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)

    def __eq__(self, other: object) -> bool:
        return self._events == (list(other) if isinstance(other, Sequence) else other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(self._events)

    @property
    def _events(self) -> list[CapturedEvent]:
        return self._read() if self._kept is None else self._kept

    def _read(self) -> list[CapturedEvent]:
        return [
            _captured(row)
            for route in self._routes
            for row in _rows(route).filter(pk__gt=self._before[route.service]).order_by("pk")
        ]


@contextmanager
def captured_events(*services: str) -> Iterator[CapturedEvents]:
    """Give the events that are published inside the block, of the named services or of all."""
    events = CapturedEvents(services)
    yield events
    events.keep()


def _captured(row: OutboxMessage) -> CapturedEvent:
    envelope = decode_envelope(row.payload, outbox_id=row.pk, event_type=row.event_type)
    contract = contracts.get(row.event_type)
    return CapturedEvent(row.event_type, contract.decode(envelope.payload, version=envelope.event_version))


def _last_id(route: ServiceRoute) -> int:
    last = _rows(route).order_by("-pk").values_list("pk", flat=True).first()
    return last or 0


def _rows(route: ServiceRoute) -> QuerySet[OutboxMessage]:
    return rows_of(service_models()[route.service], route.database)
