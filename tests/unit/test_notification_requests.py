"""From a record and a channel to a request, or to the reason why there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_events.notification.channels import SealedChannel
from agent_events.notification.messages import SUMMARY_MAX_LENGTH, body_of
from agent_events.notification.policy import Outcome, Verdict
from agent_events.notification.preparation import Preparation, Request
from agent_events.notification.records import Claimed
from agent_events.notification.sealing import Sealer
from tests.webhooks import SECRET, TOKEN

SENT_AT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
SEALER = Sealer(["key"])
GOOD = f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}"


def claimed(**changes: Any) -> Claimed:
    record = Claimed(
        id=7,
        user_id=42,
        trigger_id="tr-1",
        preview_id="pv-1",
        trigger_type="important_urgent_task",
        target_type="task_pool",
        target_id=9,
        target_url="/schedule-adjust/pv-1",
        summary_text="Move *report* to 15:00",
        fallback_text="A task is due",
        trace_id="trace-1",
        attempt=1,
    )
    return replace(record, **changes)


def channel(webhook: str | None = GOOD, *, token: str | None = None, enabled: bool = True) -> SealedChannel:
    return SealedChannel(42, enabled, SEALER.seal(webhook) if webhook else None, SEALER.seal(token) if token else None)


def prepare(record: Claimed, of_user: SealedChannel | None) -> Request | Verdict:
    return Preparation(SEALER, (), "https://smartflow.example/").request(record, of_user, sent_at=SENT_AT)


def test_body_holds_what_the_receiver_needs() -> None:
    assert json.loads(body_of(claimed(), site_url="https://smartflow.example/", sent_at=SENT_AT)) == {
        "event": "notification.feishu.requested",
        "version": "1",
        "notification_id": 7,
        "user_id": 42,
        "trigger_id": "tr-1",
        "preview_id": "pv-1",
        "trigger_type": "important_urgent_task",
        "target_type": "task_pool",
        "target_id": 9,
        "message": {
            "title": "SmartFlow has a proposal for your schedule",
            "summary": "Move *report* to 15:00",
            "action_text": "Look at the proposal",
            "action_url": "https://smartflow.example/schedule-adjust/pv-1",
        },
        "trace_id": "trace-1",
        "sent_at": "2026-03-01T08:30:00Z",
    }


@pytest.mark.parametrize(
    ("summary", "fallback", "shown"),
    [
        ("one", "two", "one"),
        (None, "two", "two"),
        ("", "two", "two"),
        (None, None, "Open it to see what it would change, and decide."),
    ],
)
def test_summary_falls_back(summary: str | None, fallback: str | None, shown: str) -> None:
    body = body_of(claimed(summary_text=summary, fallback_text=fallback), site_url="https://x", sent_at=SENT_AT)
    assert json.loads(body)["message"]["summary"] == shown


def test_long_summary_is_cut() -> None:
    body = body_of(claimed(summary_text="日" * 100_000), site_url="https://x", sent_at=SENT_AT)
    summary = json.loads(body)["message"]["summary"]
    assert len(summary) == SUMMARY_MAX_LENGTH
    assert summary.endswith("日…")


def test_request_carries_webhook_token_and_body() -> None:
    request = prepare(claimed(), channel(token=TOKEN))
    assert isinstance(request, Request)
    assert (request.webhook.secret, request.token) == (SECRET, TOKEN)
    assert json.loads(request.body)["notification_id"] == 7


def test_stored_request_and_texts_of_it_do_not_tell_the_secrets() -> None:
    request = prepare(claimed(summary_text=f"look: {GOOD} and {TOKEN}"), channel(token=TOKEN))
    assert isinstance(request, Request)
    stored = json.loads(request.stored())
    assert stored["url"] == "https://www.feishu.cn/flow/api/trigger-webhook/****bbcc"
    assert stored["authorization"] == "Bearer ****"
    assert stored["body"]["message"]["summary"] == "look: **** and ****"
    for text in (request.stored(), repr(request)):
        assert SECRET not in text
        assert TOKEN not in text


def test_stored_request_without_a_token_says_so() -> None:
    request = prepare(claimed(), channel())
    assert isinstance(request, Request)
    assert json.loads(request.stored())["authorization"] is None


@pytest.mark.parametrize(
    ("of_user", "code"),
    [
        (None, "no_webhook"),
        (channel(None), "no_webhook"),
        (channel(enabled=False), "switched_off"),
        (channel(None, enabled=False), "no_webhook"),
    ],
)
def test_user_without_a_webhook_is_skipped(of_user: SealedChannel | None, code: str) -> None:
    verdict = prepare(claimed(), of_user)
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, verdict.code, verdict.counts) == (Outcome.SKIPPED, code, False)


@pytest.mark.parametrize(
    "of_user",
    [channel(f"http://127.0.0.1/flow/api/trigger-webhook/{SECRET}"), channel(token=f"{TOKEN}\r\nX-Evil: 1")],
)
def test_stored_webhook_that_is_not_allowed_is_hopeless_and_not_told(of_user: SealedChannel) -> None:
    verdict = prepare(claimed(), of_user)
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, verdict.code) == (Outcome.HOPELESS, "webhook_refused")
    assert SECRET not in verdict.reason
    assert TOKEN not in verdict.reason


def test_webhook_sealed_under_a_lost_key_is_tried_again_so_that_the_key_can_be_brought_back() -> None:
    lost = SealedChannel(42, enabled=True, webhook=Sealer(["lost"]).seal(GOOD), token=None)
    verdict = prepare(claimed(), lost)
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, verdict.code, verdict.counts) == (Outcome.RETRY, "webhook_sealed", True)


def test_interrupted_last_attempt_is_not_repeated() -> None:
    verdict = prepare(claimed(attempt=6), channel())
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, verdict.code, verdict.counts) == (Outcome.HOPELESS, "interrupted", False)
