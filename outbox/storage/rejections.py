"""Broker records that cannot be tied to an outbox row, kept for a person to see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from django.db.models import Count as Aggregate
from django.db.models import F, QuerySet

from outbox.brokers.base import IncomingRecord
from outbox.fields import UtcNow
from outbox.models import RejectedRecord
from outbox.storage.chunks import chunks
from outbox.storage.rows import Pruned
from outbox.storage.status_rows import COUNT_CAP, Count, open_and_closed

KEY_MAX_BYTES: Final = 4 * 1024
VALUE_MAX_BYTES: Final = 64 * 1024
HEADERS_MAX_LENGTH: Final = 16 * 1024
"""What is kept of a record: enough for telling whose it is. Anybody may write to a topic, and as much as it takes."""
_GROUPS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record and why it was not taken."""

    record: IncomingRecord
    reason: str


@dataclass(frozen=True, slots=True)
class OtherInstallation:
    """Another installation whose records came to the service's topic, until a person resolves its rejected record."""

    installation: str
    records: int
    """How many came, some of them more than once."""
    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class RejectionStore:
    """The rejected records of one service, in the database of its outbox."""

    service: str
    using: str

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Keep ``rejections`` in the caller's transaction; the same record again changes nothing."""
        rows = [self._row(rejection) for rejection in rejections]
        for chunk in chunks(rows, _size):
            RejectedRecord.objects.using(self.using).bulk_create(chunk, ignore_conflicts=True)

    def add_group(self, records: Sequence[IncomingRecord], *, installation: str, reason: str) -> None:
        """Count ``records`` of another installation in the one row that stands for all of them, and open it again.

        The row holds the first of them. Call it outside of a transaction: consumers of one service share the row, and
        those that lock it for longer than a statement would deadlock.

        :raises DatabaseError: the database is away; give the records again.
        """
        first, last = records[0], records[-1]
        rows = RejectedRecord.objects.using(self.using)
        group = rows.filter(service=self.service, topic=first.topic, installation=installation)
        change: dict[str, Any] = {
            "records": F("records") + len(records),
            "last_partition": last.partition,
            "last_offset": last.offset,
            "last_received_at": UtcNow(),
            "reason": reason[:500],
            "resolved_at": None,
            "resolved_by": "",
        }
        if not group.update(**change):
            row = self._row(Rejection(first, reason))
            row.installation, row.records = installation, 0
            # Its record's digest may be in the table: an older version rejected each record by itself.
            row.digest = hashlib.sha256(installation.encode()).hexdigest()
            rows.bulk_create([row], ignore_conflicts=True)
            group.update(**change)

    def resolve(self, ids: Sequence[int], *, by: str) -> int:
        """Take records off the open list; return how many were on it."""
        return (
            RejectedRecord.objects.using(self.using)
            .filter(service=self.service, id__in=ids, resolved_at=None)
            .update(resolved_at=UtcNow(), resolved_by=by[:150])
        )

    def count_open(self, *, cap: int = COUNT_CAP) -> Count:
        """Count what no person has resolved yet among the ``cap`` * 2 newest."""
        newest = self._all.order_by("-service", "-id").values("resolved_at")[: cap * 2]
        found = newest.aggregate(all=Aggregate("*"), resolved=Aggregate("resolved_at"))
        return open_and_closed(found["all"], found["all"] - found["resolved"], cap)[0]

    def other_installations(self, *, topic: str) -> tuple[OtherInstallation, ...]:
        """Return whose records came, until a person resolves them, the last one first.

        The topic narrows the search to them, whatever else was rejected.
        """
        groups = self._all.filter(topic=topic, installation__isnull=False, resolved_at=None)
        found = groups.values_list("installation", "records", "last_received_at", "received_at")[:_GROUPS_SHOWN]
        others = (OtherInstallation(name or "", records, last or first) for name, records, last, first in found)
        return tuple(sorted(others, key=lambda each: each.last_received_at, reverse=True))

    def count_resolved(self, *, before: datetime) -> int:
        """Count what ``prune`` would delete."""
        return self._resolved(before).count()

    def prune(self, *, resolved_before: datetime, after_id: int, limit: int) -> Pruned:
        """Delete up to ``limit`` of those behind ``after_id`` that a person resolved before a moment, oldest first."""
        found = self._resolved(resolved_before).filter(id__gt=after_id).order_by("id")
        ids = list(found.values_list("id", flat=True)[:limit])
        deleted = RejectedRecord.objects.using(self.using).filter(id__in=ids).delete()[0]
        return Pruned(deleted, ids[-1] if len(ids) == limit else None)

    def _resolved(self, before: datetime) -> QuerySet[RejectedRecord]:
        return self._all.filter(resolved_at__lt=before)

    @property
    def _all(self) -> QuerySet[RejectedRecord]:
        return RejectedRecord.objects.using(self.using).filter(service=self.service)

    def _row(self, rejection: Rejection) -> RejectedRecord:
        record = rejection.record
        digest = _digest(record)
        return RejectedRecord(
            service=self.service,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key and record.key[:KEY_MAX_BYTES],
            key_size=len(record.key or b""),
            value=record.value and record.value[:VALUE_MAX_BYTES],
            value_size=len(record.value or b""),
            digest=digest,
            headers=msgspec.json.encode(_first_of(record.headers)).decode(),
            reason=rejection.reason[:500],
        )


def _digest(record: IncomingRecord) -> str:
    digest = hashlib.sha256((record.key or b"") + b"\x00")
    digest.update(record.value or b"")
    return digest.hexdigest()


def _first_of(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """Return the headers that may be kept, as text; the one that is too much is cut, those behind it are left out."""
    kept: list[tuple[str, str]] = []
    left = HEADERS_MAX_LENGTH
    for name, value in headers:
        text = value[:left].decode("utf-8", "backslashreplace")[:left]
        kept.append((name[:left], text))
        left -= len(name) + len(text) + 1
        if left <= 0:
            break
    return kept


def _size(row: RejectedRecord) -> int:
    """Return about how many bytes of a statement ``row`` takes; binary values are sent escaped or in hexadecimal."""
    return 2 * (len(row.key or b"") + len(row.value or b"")) + 4 * len(row.headers) + 1000
