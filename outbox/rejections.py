"""Broker records that cannot be tied to an outbox row, kept for a person to see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from outbox.brokers.base import IncomingRecord
from outbox.fields import UtcNow
from outbox.models import RejectedRecord


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record and why it was not taken."""

    record: IncomingRecord
    reason: str


@dataclass(frozen=True, slots=True)
class RejectionStore:
    """The rejected records of one service, in the database of its outbox."""

    service: str
    using: str

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Keep ``rejections`` in the caller's transaction; the same record again changes nothing."""
        RejectedRecord.objects.using(self.using).bulk_create(
            [self._row(rejection) for rejection in rejections], ignore_conflicts=True
        )

    def resolve(self, ids: Sequence[int], *, by: str) -> int:
        """Take records off the open list; return how many were on it."""
        return (
            RejectedRecord.objects.using(self.using)
            .filter(service=self.service, id__in=ids, resolved_at=None)
            .update(resolved_at=UtcNow(), resolved_by=by[:150])
        )

    def _row(self, rejection: Rejection) -> RejectedRecord:
        record = rejection.record
        digest = hashlib.sha256((record.key or b"") + b"\x00" + (record.value or b"")).hexdigest()
        headers = [[name, value.decode("utf-8", "backslashreplace")] for name, value in record.headers]
        return RejectedRecord(
            service=self.service,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            value=record.value,
            digest=digest,
            headers=msgspec.json.encode(headers).decode(),
            reason=rejection.reason[:500],
        )
