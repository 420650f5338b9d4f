"""The store of notifications: one record for a key, guarded transitions, leases; and the handler in front of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from agent_events.notification.events import publish_feishu_notification
from agent_events.notification.models import NotificationOutboxMessage, NotificationRecord
from agent_events.notification.policy import Outcome, Verdict
from agent_events.notification.records import Exchange
from outbox.testing import drain
from tests.notifications import (
    LEASE,
    REQUESTED_AT,
    change,
    claim,
    due_in,
    get,
    make,
    make_due,
    records,
    request,
    statuses,
)
from tests.threads import together

pytestmark = pytest.mark.usefixtures("emptied_notifications")

SENT = Verdict(Outcome.SENT, http_status=200)
RETRY = Verdict(Outcome.RETRY, "http_500", "the webhook answered HTTP 500", 500)
HOPELESS = Verdict(Outcome.HOPELESS, "http_401", "not accepted", 401)
SKIPPED = Verdict(Outcome.SKIPPED, "no_webhook", "the user has no webhook", counts=False)


def settle(alias: str, record_id: int, verdict: Verdict, *, token: str = "t-1", attempt: int = 1) -> Any:
    return records(alias).settle(record_id, token=token, attempt=attempt, verdict=verdict, exchange=Exchange())


def row_of(alias: str, record_id: int) -> dict[str, Any]:
    return NotificationRecord.objects.using(alias).values().get(pk=record_id)


# --- the handler -------------------------------------------------------------------------------------------------


def publish(alias: str, user_id: int = 1, **changes: Any) -> None:
    publish_feishu_notification(
        **{
            "user_id": user_id,
            "trigger_id": "tr-1",
            "preview_id": "pv-1",
            "trigger_type": "important_urgent_task",
            "target_type": "task_pool",
            "target_id": 9,
            "target_url": "/assistant/c-1",
            "requested_at": REQUESTED_AT,
        }
        | changes
    )


def test_event_becomes_a_pending_record_that_is_due(alias: str) -> None:
    publish(alias, summary_text="日程 🎉", fallback_text="fall", trace_id="trace", target_id=2**63 - 1)
    drain("notification")
    (record,) = NotificationRecord.objects.using(alias)
    assert (record.channel, record.dedupe_key) == ("feishu", "1:important_urgent_task:2026-03-01T08:30:00Z")
    assert (record.status, record.attempt_count, record.last_error, record.sent_at) == ("pending", 0, None, None)
    assert (record.user_id, record.trigger_id, record.preview_id) == (1, "tr-1", "pv-1")
    assert (record.trigger_type, record.target_type, record.target_id) == (
        "important_urgent_task",
        "task_pool",
        2**63 - 1,
    )
    assert (record.target_url, record.summary_text, record.fallback_text) == ("/assistant/c-1", "日程 🎉", "fall")
    assert (record.trace_id, record.requested_at) == ("trace", REQUESTED_AT)
    assert due_in(alias, record.pk) <= timedelta(0)
    assert NotificationOutboxMessage.objects.using(alias).get().status == "consumed"


def test_events_of_one_window_become_one_record(alias: str) -> None:
    for minutes in (0, 5, 15):
        publish(alias, requested_at=REQUESTED_AT + timedelta(minutes=minutes), preview_id=f"pv-{minutes}")
    drain("notification")
    publish(alias, preview_id="later")
    drain("notification")
    publish(alias, requested_at=REQUESTED_AT + timedelta(minutes=16))
    drain("notification")
    assert list(NotificationRecord.objects.using(alias).order_by("pk").values_list("dedupe_key", "preview_id")) == [
        ("1:important_urgent_task:2026-03-01T08:30:00Z", "pv-0"),
        ("1:important_urgent_task:2026-03-01T09:00:00Z", "pv-1"),
    ]


@pytest.mark.parametrize("status", ["pending", "sending", "sent", "failed", "dead", "skipped"])
def test_repeated_request_leaves_the_record_as_it_is(alias: str, status: str) -> None:
    (record_id,) = make(alias, status=status, attempt_count=3, last_error="x", next_retry_at=None)
    before = row_of(alias, record_id)
    records(alias).create_missing([request(summary_text="another"), request(summary_text="once more")])
    assert row_of(alias, record_id) == before
    assert NotificationRecord.objects.using(alias).count() == 1


def test_keys_are_told_apart_by_case(alias: str) -> None:
    records(alias).create_missing([request(dedupe_key="1:Type:x"), request(dedupe_key="1:type:x")])
    assert NotificationRecord.objects.using(alias).count() == 2


def test_request_that_names_a_record_of_its_user_is_done(alias: str) -> None:
    (record_id,) = make(alias)
    records(alias).create_missing([request(notification_id=record_id, dedupe_key="another key")])
    assert NotificationRecord.objects.using(alias).count() == 1


def test_request_that_names_nothing_or_anothers_record_gets_its_own(alias: str) -> None:
    (record_id,) = make(alias)
    records(alias).create_missing([request(2, notification_id=record_id), request(3, notification_id=10**12)])
    assert list(NotificationRecord.objects.using(alias).order_by("pk").values_list("user_id", flat=True)) == [1, 2, 3]


def test_free_text_that_postgresql_cannot_store_is_mended(alias: str) -> None:
    records(alias).create_missing([request(summary_text="a\x00b", fallback_text="\x00", trace_id="t" * 500)])
    (record,) = NotificationRecord.objects.using(alias)
    assert (record.summary_text, record.fallback_text, record.trace_id) == ("ab", "", "t" * 128)


def test_rolled_back_transaction_leaves_no_record(alias: str) -> None:
    with transaction.atomic(using=alias):
        records(alias).create_missing([request()])
        transaction.set_rollback(True, using=alias)
    assert statuses(alias) == []


def test_large_batch_is_stored_whole(alias: str) -> None:
    records(alias).create_missing([request(number, summary_text="x" * 5_000) for number in range(1, 701)])
    assert NotificationRecord.objects.using(alias).count() == 700


def test_consumers_at_once_make_one_record_of_a_key(alias: str) -> None:
    def store(_: int) -> None:
        with transaction.atomic(using=alias):
            records(alias).create_missing([request(number) for number in range(1, 31)])

    together(store, range(4))
    assert NotificationRecord.objects.using(alias).count() == 30


# --- claiming ----------------------------------------------------------------------------------------------------


def test_claim_takes_what_waits_longest_and_counts_the_attempt(alias: str) -> None:
    ids = make(alias, 3)
    change(alias, ids[2], next_retry_at=get(alias, ids[0]).next_retry_at - timedelta(minutes=1))
    claimed = claim(alias, limit=1)
    assert [(each.id, each.attempt) for each in claimed] == [(ids[2], 1)]
    record = get(alias, ids[2])
    assert (record.status, record.attempt_count, record.lease_token) == ("sending", 1, "t-1")
    assert LEASE - timedelta(seconds=5) < due_in(alias, ids[2]) <= LEASE
    assert [each.id for each in claim(alias, token="t-2")] == ids[:2]
    assert claim(alias, token="t-3") == []


@pytest.mark.parametrize("status", ["pending", "failed"])
def test_record_is_not_claimed_before_it_is_due(alias: str, status: str) -> None:
    make(alias, status=status)
    record_id = make(alias)[0]
    change(alias, record_id, next_retry_at=get(alias, record_id).next_retry_at + timedelta(minutes=5))
    assert claim(alias) == []
    make_due(alias)
    assert [each.id for each in claim(alias)] == [record_id]


@pytest.mark.parametrize("status", ["sent", "dead", "skipped"])
def test_finished_record_is_never_claimed(alias: str, status: str) -> None:
    (record_id,) = make(alias, status=status)
    assert claim(alias) == []
    change(alias, record_id, next_retry_at=None)
    assert claim(alias) == []


def test_record_in_sending_is_taken_up_again_when_its_lease_has_run_out(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias, token="dead")
    assert claim(alias, token="next") == []
    make_due(alias)
    assert [(each.id, each.attempt) for each in claim(alias, token="next")] == [(record_id, 2)]
    assert get(alias, record_id).lease_token == "next"


def test_claims_at_once_share_the_records(alias: str) -> None:
    ids = make(alias, 60)

    def take(number: int) -> list[int]:
        mine: list[int] = []
        for turn in range(60):
            got = claim(alias, token=f"{number}-{turn}", limit=3)
            if not got:
                break
            mine += [each.id for each in got]
        return mine

    taken = [record_id for mine in together(take, range(4)) for record_id in mine]
    assert sorted(taken) == sorted(ids)


# --- settling ----------------------------------------------------------------------------------------------------


def test_result_of_a_lease_that_was_taken_over_changes_nothing(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias, token="stale")
    make_due(alias)
    claim(alias, token="owner")
    before = row_of(alias, record_id)
    for verdict in (SENT, RETRY, HOPELESS, SKIPPED):
        assert settle(alias, record_id, verdict, token="stale") is None
    assert records(alias).release(token="stale") == 0
    assert row_of(alias, record_id) == before
    assert settle(alias, record_id, SENT, token="owner", attempt=2) == "sent"


def test_result_counts_as_long_as_nobody_took_the_lease_over(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias)
    make_due(alias)
    assert settle(alias, record_id, SENT) == "sent"


def test_result_counts_once(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias)
    assert settle(alias, record_id, SENT) == "sent"
    assert settle(alias, record_id, HOPELESS) is None
    assert get(alias, record_id).status == "sent"


def test_sent_record_says_when_and_is_never_due_again(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias)
    settle(alias, record_id, SENT)
    record = get(alias, record_id)
    assert record.sent_at is not None
    assert (record.next_retry_at, record.lease_token, record.last_error, record.http_status) == (None, "", None, 200)


def test_failures_are_retried_after_5_10_20_and_30_minutes_and_the_fifth_is_the_end(alias: str) -> None:
    (record_id,) = make(alias)
    for attempt, minutes in enumerate((5, 10, 20, 30), start=1):
        assert [each.attempt for each in claim(alias)] == [attempt]
        assert settle(alias, record_id, RETRY, attempt=attempt) == "failed"
        pause = timedelta(minutes=minutes)
        assert pause - timedelta(seconds=5) < due_in(alias, record_id) <= pause
        make_due(alias)
    assert [each.attempt for each in claim(alias)] == [5]
    assert settle(alias, record_id, RETRY, attempt=5) == "dead"
    record = get(alias, record_id)
    assert (record.attempt_count, record.next_retry_at) == (5, None)
    assert (record.last_error_code, record.last_error) == ("http_500", "the webhook answered HTTP 500")


def test_record_without_a_webhook_is_skipped_and_has_used_no_attempt(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias)
    assert settle(alias, record_id, SKIPPED) == "skipped"
    assert get(alias, record_id).attempt_count == 0


def test_released_record_is_due_at_once_and_has_used_no_attempt(alias: str) -> None:
    ids = make(alias, 2)
    claim(alias)
    assert records(alias).release(token="t-1", record_id=ids[0]) == 1
    assert statuses(alias) == ["pending", "sending"]
    assert records(alias).release(token="t-1") == 1
    assert [(get(alias, each).attempt_count, get(alias, each).lease_token) for each in ids] == [(0, ""), (0, "")]
    assert len(claim(alias, token="t-2")) == 2


def test_long_texts_are_cut(alias: str) -> None:
    (record_id,) = make(alias)
    claim(alias)
    verdict = Verdict(Outcome.HOPELESS, "c" * 100, "错" * 3000, 400)
    records(alias).settle(record_id, token="t-1", attempt=1, verdict=verdict, exchange=Exchange("{}", "🎉" * 70_000))
    record = get(alias, record_id)
    assert (len(record.last_error_code), record.last_error, record.response_text) == (64, "错" * 2000, "🎉" * 2000)


@pytest.mark.parametrize("status", ["dead", "skipped"])
def test_person_can_have_a_finished_record_delivered_after_all(alias: str, status: str) -> None:
    (record_id,) = make(alias, status=status, attempt_count=5, next_retry_at=None)
    assert records(alias).requeue([record_id]) == 1
    assert [(each.id, each.attempt) for each in claim(alias)] == [(record_id, 1)]


@pytest.mark.parametrize("status", ["pending", "sending", "sent", "failed"])
def test_record_that_is_not_at_an_end_or_was_sent_is_not_requeued(alias: str, status: str) -> None:
    (record_id,) = make(alias, status=status)
    before = row_of(alias, record_id)
    assert records(alias).requeue([record_id]) == 0
    assert row_of(alias, record_id) == before
