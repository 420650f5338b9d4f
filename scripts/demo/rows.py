"""The outbox rows of all services, as a demo leaves them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from outbox.registry.catalog import service_models

_COLUMNS = (
    "id",
    "payload",
    "event_type",
    "message_key",
    "status",
    "retry_count",
    "last_error",
    "created_at",
    "consumed_at",
)


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as it ended."""

    service: str
    id: int
    event_id: str
    event_type: str
    message_key: str
    status: str
    retry_count: int
    reason: str
    created_at: datetime
    consumed_at: datetime | None


RowsByEvent = Mapping[str, Sequence[Row]]


def by_event_id(rows: Iterable[Row]) -> RowsByEvent:
    """Return the rows of each event; one that has none has an empty list."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.event_id].append(row)
    return found


def read_rows() -> list[Row]:
    """Return all rows, service by service in the order of their ids."""
    return [
        Row(
            service, row_id, _event_id(payload), event_type, key, status, retries, reason or "", created_at, consumed_at
        )
        for service, model in service_models().items()
        for row_id, payload, event_type, key, status, retries, reason, created_at, consumed_at in (
            QuerySet(model).order_by("id").values_list(*_COLUMNS)
        )
    ]


def _event_id(payload: str) -> str:
    try:
        return str(json.loads(payload)["event_id"])
    except ValueError:
        return ""
