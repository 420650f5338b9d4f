"""Delivery against a real server and real databases: what an answer leads to, who is told and with what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent_events.notification.deliverer import Deliverer
from agent_events.notification.events import publish_feishu_notification
from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from agent_events.notification.sender import WebhookSender
from outbox.coordination.shutdown import StopFlag
from outbox.testing import drain
from tests.notifications import (
    REQUESTED_AT,
    SEALER,
    channels,
    deliverer,
    due_in,
    get,
    make,
    make_due,
    one,
    outcome,
    records,
    request,
)
from tests.webhooks import SECRET, TOKEN, Authority, WebhookServer, answer, close, drip, hang, huge, webhook_server

pytestmark = pytest.mark.usefixtures("emptied_notifications")


# --- what an answer leads to -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(answer(200, {"code": 0}), ("sent", 1, "", 200), id="200 with code 0"),
        pytest.param(answer(200), ("sent", 1, "", 200), id="200 without a code"),
        pytest.param(answer(204), ("sent", 1, "", 204), id="204"),
        pytest.param(answer(200, {"code": 19001, "msg": "x"}), ("dead", 1, "refused", 200), id="200 with another code"),
        pytest.param(answer(400), ("dead", 1, "http_400", 400), id="400"),
        pytest.param(answer(401), ("dead", 1, "http_401", 401), id="401"),
        pytest.param(answer(403), ("dead", 1, "http_403", 403), id="403"),
        pytest.param(answer(302, b"", Location="https://x.example/"), ("dead", 1, "http_302", 302), id="redirect"),
        pytest.param(answer(429), ("failed", 1, "http_429", 429), id="429"),
        pytest.param(answer(500), ("failed", 1, "http_500", 500), id="500"),
        pytest.param(answer(503, {"code": 0}), ("failed", 1, "http_503", 503), id="503"),
        pytest.param(hang, ("failed", 1, "timeout", None), id="time-out"),
        pytest.param(
            drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"x"), ("failed", 1, "timeout", None), id="drip"
        ),
        pytest.param(close, ("failed", 1, "broken_answer", None), id="closed connection"),
        pytest.param(huge(10 * 1024 * 1024), ("sent", 1, "", 200), id="10 MB"),
    ],
)
def test_answer_leads_to_status(alias: str, server: WebhookServer, answers: Any, expected: tuple[Any, ...]) -> None:
    record_id = one(alias, server)
    server.answer = answers
    made = deliverer(alias)
    assert made.step() is True
    assert outcome(alias, record_id) == expected
    assert len(server.received) == 1
    assert made.step() is False
    assert len(server.received) == 1


def test_redirect_to_another_host_is_not_followed(alias: str, server: WebhookServer) -> None:
    one(alias, server, token=TOKEN)
    with webhook_server() as other:
        server.answer = answer(307, b"", Location=other.url())
        deliverer(alias).step()
        assert other.received == []


def test_failed_record_is_tried_again_when_its_pause_is_over_and_dies_at_the_fifth(
    alias: str, server: WebhookServer
) -> None:
    record_id = one(alias, server)
    server.answer = answer(500)
    made = deliverer(alias)
    for attempt, minutes in enumerate((5, 10, 20, 30), start=1):
        assert made.step() is True
        assert outcome(alias, record_id) == ("failed", attempt, "http_500", 500)
        assert timedelta(minutes=minutes - 1) < due_in(alias, record_id) <= timedelta(minutes=minutes)
        assert made.step() is False
        make_due(alias)
    made.step()
    assert outcome(alias, record_id) == ("dead", 5, "http_500", 500)
    assert (made.totals.failed, made.totals.dead, len(server.received)) == (4, 1, 5)


def test_record_that_failed_before_is_sent(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    server.answer = close
    deliverer(alias).step()
    server.answer = answer(200, {"code": 0})
    make_due(alias)
    deliverer(alias).step()
    assert outcome(alias, record_id) == ("sent", 2, "", 200)
    assert get(alias, record_id).last_error is None


def test_https_with_a_certificate_of_a_trusted_authority(alias: str, tmp_path: Any) -> None:
    authority = Authority.make(tmp_path)
    with webhook_server(tls=authority.server_context("127.0.0.1")) as server:
        record_id = one(alias, server, token=TOKEN)
        deliverer(alias, ca_file=str(authority.ca_file), timeout=timedelta(seconds=5)).step()
        assert outcome(alias, record_id) == ("sent", 1, "", 200)


def test_https_with_a_certificate_of_an_unknown_authority_gets_nothing(alias: str, tmp_path: Any) -> None:
    with webhook_server(tls=Authority.make(tmp_path).server_context("127.0.0.1")) as server:
        record_id = one(alias, server, token=TOKEN)
        deliverer(alias).step()
        assert outcome(alias, record_id) == ("failed", 1, "not_connected", None)
        assert server.received == []


# --- who is told, and with what ----------------------------------------------------------------------------------


def test_published_event_reaches_the_users_webhook(alias: str, server: WebhookServer) -> None:
    channels(alias).save(42, webhook=server.url(), token=TOKEN)
    publish_feishu_notification(
        user_id=42,
        trigger_id="tr-1",
        preview_id="pv-1",
        trigger_type="unfinished_feedback",
        target_type="schedule_event",
        target_id=0,
        target_url="/assistant/c-1",
        summary_text="日程 🎉",
        trace_id="trace-1",
        requested_at=REQUESTED_AT,
    )
    drain()
    assert deliverer(alias).run(StopFlag(), once=True).sent == 1
    (received,) = server.received
    assert received.headers["authorization"] == f"Bearer {TOKEN}"
    record = NotificationRecord.objects.using(alias).get()
    assert received.json == {
        "event": "notification.feishu.requested",
        "version": "1",
        "notification_id": record.pk,
        "user_id": 42,
        "trigger_id": "tr-1",
        "preview_id": "pv-1",
        "trigger_type": "unfinished_feedback",
        "target_type": "schedule_event",
        "target_id": 0,
        "message": {
            "title": "SmartFlow has a proposal for your schedule",
            "summary": "日程 🎉",
            "action_text": "Look at the proposal",
            "action_url": "https://smartflow.example/assistant/c-1",
        },
        "trace_id": "trace-1",
        "sent_at": "2026-03-01T08:45:00Z",
    }


def test_user_without_a_webhook_or_with_a_disabled_one_is_skipped(alias: str, server: WebhookServer) -> None:
    ids = make(alias, 3)
    channels(alias).save(2, webhook=server.url(), enabled=False)
    channels(alias).save(3, webhook=server.url())
    deliverer(alias).step()
    assert [outcome(alias, each)[:3] for each in ids] == [
        ("skipped", 0, "no_webhook"),
        ("skipped", 0, "switched_off"),
        ("sent", 1, ""),
    ]


def test_webhook_that_is_not_allowed_gets_nothing(alias: str, server: WebhookServer) -> None:
    (record_id,) = make(alias)
    # Written past the store, as another program might.
    UserNotificationChannel.objects.using(alias).create(
        user_id=1, channel="feishu", sealed_webhook=SEALER.seal(server.url("localhost")), updated_at=REQUESTED_AT
    )
    deliverer(alias).step()
    assert outcome(alias, record_id) == ("dead", 0, "webhook_refused", None)
    assert server.received == []


def test_feishu_name_that_leads_to_this_machine_gets_nothing(alias: str) -> None:
    channels(alias).save(1, webhook=f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}")
    (record_id,) = make(alias)
    sender = WebhookSender(
        timeout=timedelta(seconds=1), lookup=lambda _host, port: [(2, 1, 6, "", ("127.0.0.1", port))]
    )
    deliverer(alias, sender=sender).step()
    assert outcome(alias, record_id) == ("failed", 1, "address_refused", None)


def test_deliverer_is_built_from_settings(alias: str, server: WebhookServer, settings: Any) -> None:
    from agent_events.notification.assembly import build_channels, build_deliverer, build_records
    from agent_events.notification.deliverer import DeliveryOptions

    settings.NOTIFICATION = {"ALLOWED_HOSTS": ["127.0.0.1"], "SITE_URL": "https://site.example/base/"}
    build_channels().save(1, webhook=server.url())
    build_records().create_missing([request()])
    made = build_deliverer(DeliveryOptions())
    assert isinstance(made, Deliverer)
    assert made.run(StopFlag(), once=True).sent == 1
    assert server.bodies[0]["message"]["action_url"] == "https://site.example/base/schedule-adjust/pv-1"
    assert records(alias).requeue([]) == 0
