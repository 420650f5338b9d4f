"""The only writer of ``notification_records``: every change of ``status`` is a transition of ``lifecycle``.

An update names the statuses that it is legal from and, while a record is sending, the lease under which it was claimed:
a deliverer whose lease was taken over changes nothing. All times that are compared come from the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import F, Q, QuerySet

from agent_events.notification import lifecycle
from agent_events.notification.events import FeishuNotificationRequested
from agent_events.notification.lifecycle import Status, Transition
from agent_events.notification.models import NotificationRecord
from agent_events.notification.policy import Verdict, next_step
from outbox.bulk import BulkInsert, ignoring_known
from outbox.fields import UtcNow, from_now

FEISHU: Final = "feishu"
"""The name of the channel that posts to a Feishu webhook."""

ERROR_MAX_LENGTH: Final = 2_000
RESPONSE_MAX_LENGTH: Final = 2_000


_INSERT: Final = BulkInsert(
    table=NotificationRecord._meta.db_table,
    columns=(
        "channel",
        "dedupe_key",
        "user_id",
        "trigger_id",
        "preview_id",
        "trigger_type",
        "target_type",
        "target_id",
        "target_url",
        "summary_text",
        "fallback_text",
        "trace_id",
        "requested_at",
    ),
    on_conflict=ignoring_known("channel, dedupe_key"),
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A record as its deliverer claimed it; ``attempt`` counts from 1."""

    id: int
    user_id: int
    trigger_id: str
    preview_id: str
    trigger_type: str
    target_type: str
    target_id: int
    target_url: str
    summary_text: str | None
    fallback_text: str | None
    trace_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was sent and what came back, without secrets; None where nothing was."""

    request_json: str | None = None
    response_text: str | None = None


class NotificationRecords:
    """The records of one database."""

    def __init__(self, using: str) -> None:
        self.using = using

    # --- the handler: inside the consumer's transaction ----------------------------------------------------------

    def create_missing(self, requests: Sequence[FeishuNotificationRequested]) -> None:
        """Create a record for each request that has none.

        A request has one when it names the id of a record of its user, or when its dedupe key is known.
        """
        named = self._owners({each.notification_id for each in requests if each.notification_id is not None})
        # Sorted, so that two transactions insert the same keys in the same order; the first of a key is kept.
        by_key: dict[str, FeishuNotificationRequested] = {}
        for each in requests:
            if each.notification_id is None or named.get(each.notification_id) != each.user_id:
                by_key.setdefault(each.dedupe_key, each)
        _INSERT.run([_row_of(by_key[key]) for key in sorted(by_key)], using=self.using)

    def _owners(self, ids: Collection[int]) -> dict[int, int]:
        if not ids:
            return {}
        return dict(self._rows.filter(pk__in=ids, channel=FEISHU).values_list("pk", "user_id"))

    # --- the deliverer -------------------------------------------------------------------------------------------

    def claim(self, *, limit: int, lease: timedelta, token: str) -> list[Claimed]:
        """Take up to ``limit`` records that are due, the longest waiting first, for the time of ``lease``.

        ``token`` is new for each claim. The attempt counts from here on: a process that dies while sending has used it
        up, so that a user gets no more requests than there are attempts.
        """
        due = Q(next_retry_at__lte=UtcNow())
        with transaction.atomic(using=self.using):
            ids = list(
                self._rows.filter(due, status__in=lifecycle.CLAIM.sources)
                .order_by("next_retry_at", "id")
                .select_for_update(skip_locked=True)
                .values_list("pk", flat=True)[:limit]
            )
            self._move(
                lifecycle.CLAIM,
                Q(pk__in=ids) & due,
                lease_token=token,
                next_retry_at=from_now(lease),
                attempt_count=F("attempt_count") + 1,
            )
        mine = self._rows.filter(pk__in=ids, status=Status.SENDING, lease_token=token).order_by("pk")
        return [_claimed(record) for record in mine]

    def settle(
        self, record_id: int, *, token: str, attempt: int, verdict: Verdict, exchange: Exchange
    ) -> Status | None:
        """Write down what an attempt came to; return the new status, None when the lease was taken over meanwhile."""
        transition, pause = next_step(verdict, attempt=attempt)
        changed = self._move(
            transition,
            Q(pk=record_id, lease_token=token),
            lease_token="",
            attempt_count=F("attempt_count") - (0 if verdict.counts else 1),
            next_retry_at=None if pause is None else from_now(pause),
            sent_at=UtcNow() if transition is lifecycle.MARK_SENT else None,
            last_error_code=verdict.code[:64],
            last_error=verdict.reason[:ERROR_MAX_LENGTH] or None,
            http_status=verdict.http_status,
            request_json=exchange.request_json,
            response_text=None if exchange.response_text is None else exchange.response_text[:RESPONSE_MAX_LENGTH],
        )
        return transition.target if changed else None

    def release(self, *, token: str, record_id: int | None = None) -> int:
        """Give back what was claimed under ``token`` and not sent, all or one: due now, the attempt does not count."""
        return self._move(
            lifecycle.RELEASE,
            Q(lease_token=token) if record_id is None else Q(lease_token=token, pk=record_id),
            lease_token="",
            attempt_count=F("attempt_count") - 1,
            next_retry_at=UtcNow(),
        )

    # --- operator ------------------------------------------------------------------------------------------------

    def requeue(self, ids: Iterable[int]) -> int:
        """Deliver dead or skipped records after all, with all attempts before them; return how many were so."""
        return self._move(lifecycle.REQUEUE, Q(pk__in=list(ids)), attempt_count=0, next_retry_at=UtcNow())

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _rows(self) -> QuerySet[NotificationRecord]:
        return NotificationRecord.objects.using(self.using)

    def _move(self, transition: Transition, which: Q, **columns: Any) -> int:
        """Apply ``transition`` to those records of ``which`` that are in one of its sources; return how many."""
        return self._rows.filter(which, status__in=transition.sources).update(
            status=transition.target, updated_at=UtcNow(), **columns
        )


def _row_of(request: FeishuNotificationRequested) -> tuple[Any, ...]:
    """Return the values of ``_INSERT``."""
    return (
        FEISHU,
        request.dedupe_key,
        request.user_id,
        request.trigger_id,
        request.preview_id,
        request.trigger_type,
        request.target_type,
        request.target_id,
        request.target_url,
        _clean(request.summary_text),
        _clean(request.fallback_text),
        (_clean(request.trace_id) or "")[:128],
        request.requested_at,
    )


def _clean(text: str | None) -> str | None:
    """Drop NULs, which PostgreSQL cannot store: free text must not make a notification undeliverable."""
    return None if text is None else text.replace("\x00", "")


def _claimed(record: NotificationRecord) -> Claimed:
    return Claimed(
        id=record.pk,
        user_id=record.user_id,
        trigger_id=record.trigger_id,
        preview_id=record.preview_id,
        trigger_type=record.trigger_type,
        target_type=record.target_type,
        target_id=record.target_id,
        target_url=record.target_url,
        summary_text=record.summary_text,
        fallback_text=record.fallback_text,
        trace_id=record.trace_id,
        attempt=record.attempt_count,
    )
