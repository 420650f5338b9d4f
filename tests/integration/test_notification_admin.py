"""The admin of notifications: records to read and deliver again, channels to set, secrets nowhere."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils.log import AdminEmailHandler

from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from tests.notifications import KEY, SEALER, change, channels, get, make
from tests.webhooks import SECRET, TOKEN

pytestmark = pytest.mark.django_db

RECORDS = "/admin/notification/notificationrecord/"
CHANNELS = "/admin/notification/usernotificationchannel/"
WEBHOOK = f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}"
VIEW = "view_notificationrecord"
ALIAS = "default"


@pytest.fixture(autouse=True)
def own_keys(settings: Any) -> None:
    settings.NOTIFICATION = {"SECRET_KEYS": [KEY]}
    settings.DEBUG = False


def sign_in(*permissions: str) -> Client:
    user = User.objects.create_user("somebody", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client = Client()
    client.force_login(user)
    return client


def operator() -> Client:
    return sign_in("view_usernotificationchannel", "add_usernotificationchannel", "change_usernotificationchannel")


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response
    return response.content.decode()


# --- records -----------------------------------------------------------------------------------------------------


def test_list_and_page_show_a_record_to_who_may_see_it(admin_client: Client) -> None:
    (record_id,) = make(ALIAS, status="failed", last_error_code="http_500", request_json='{"url": "https://x/****"}')
    assert "http_500" in page(admin_client, RECORDS)
    shown = page(admin_client, f"{RECORDS}{record_id}/change/")
    assert "https://x/****" in shown
    assert "报告移到" in shown
    assert "Deliver again" not in shown
    assert "http_500" in page(admin_client, f"{RECORDS}?status=failed&user_id=1")
    assert "http_500" not in page(admin_client, f"{RECORDS}?status=dead")


def test_contents_are_for_those_who_may_see_payloads(client: Client) -> None:
    (record_id,) = make(ALIAS, request_json="what was sent", response_text="what came back")
    shown = page(sign_in(VIEW), f"{RECORDS}{record_id}/change/")
    for text in ("报告移到", "what was sent", "what came back"):
        assert text not in shown


def test_record_can_be_neither_added_changed_nor_deleted(admin_client: Client) -> None:
    (record_id,) = make(ALIAS)
    before = NotificationRecord.objects.values().get()
    for url in ("add/", f"{record_id}/delete/"):
        assert admin_client.post(f"{RECORDS}{url}", {"post": "yes"}).status_code == 403
    admin_client.post(f"{RECORDS}{record_id}/change/", {"status": "sent"})
    assert NotificationRecord.objects.values().get() == before


@pytest.mark.parametrize("status", ["dead", "skipped"])
def test_operator_has_a_record_delivered_again_and_it_is_noted_who_did(status: str) -> None:
    (record_id,) = make(ALIAS, status=status, attempt_count=5, next_retry_at=None)
    client = sign_in(VIEW, "replay_outbox")
    assert "Deliver again" in page(client, f"{RECORDS}{record_id}/change/")
    assert client.post(f"{RECORDS}{record_id}/again/").status_code == 302
    record = get(ALIAS, record_id)
    assert (record.status, record.attempt_count) == ("pending", 0)
    assert record.next_retry_at is not None
    entry = LogEntry.objects.get()
    assert (entry.user.get_username(), entry.object_id) == ("somebody", str(record_id))


@pytest.mark.parametrize("status", ["pending", "sending", "sent", "failed"])
def test_record_that_is_not_dead_or_skipped_is_left_alone(status: str) -> None:
    (record_id,) = make(ALIAS, status=status, attempt_count=2)
    client = sign_in(VIEW, "replay_outbox")
    assert "Deliver again" not in page(client, f"{RECORDS}{record_id}/change/")
    client.post(f"{RECORDS}{record_id}/again/")
    assert (get(ALIAS, record_id).status, get(ALIAS, record_id).attempt_count) == (status, 2)
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("permissions", [(VIEW,), ("replay_outbox",)])
def test_without_both_permissions_nothing_is_delivered_again(permissions: tuple[str, ...]) -> None:
    (record_id,) = make(ALIAS, status="dead")
    assert sign_in(*permissions).post(f"{RECORDS}{record_id}/again/").status_code == 403
    assert get(ALIAS, record_id).status == "dead"


def test_nothing_is_delivered_again_by_a_link(admin_client: Client) -> None:
    (record_id,) = make(ALIAS, status="dead")
    assert admin_client.get(f"{RECORDS}{record_id}/again/").status_code == 405
    assert get(ALIAS, record_id).status == "dead"


@pytest.mark.parametrize("key", ["0", "999", "x", "9" * 40, "%00"])
def test_record_that_is_not_there_leads_back_to_the_list(admin_client: Client, key: str) -> None:
    assert admin_client.get(f"{RECORDS}{key}/change/").status_code == 302


# --- channels ----------------------------------------------------------------------------------------------------


def stored(user_id: int = 1) -> tuple[str | None, str | None, bool]:
    found = channels(ALIAS).of_users([user_id])[user_id]
    return (
        SEALER.open(found.webhook) if found.webhook else None,
        SEALER.open(found.token) if found.token else None,
        found.enabled,
    )


def test_channel_is_added_and_its_secrets_are_never_shown() -> None:
    client = operator()
    response = client.post(
        f"{CHANNELS}add/", {"user_id": "1", "enabled": "on", "webhook": WEBHOOK, "token": TOKEN}, follow=True
    )
    assert stored() == (WEBHOOK, TOKEN, True)
    row = UserNotificationChannel.objects.get()
    shown = [response.content.decode(), page(client, CHANNELS), page(client, f"{CHANNELS}{row.pk}/change/")]
    assert "https://www.feishu.cn/flow/api/trigger-webhook/****bbcc" in shown[1]
    shown += [str(LogEntry.objects.values().get()), str(row), repr(row), page(client, f"{CHANNELS}{row.pk}/history/")]
    for text in shown:
        assert SECRET not in text
        assert TOKEN not in text
        for sealed in (row.sealed_webhook, row.sealed_token):
            assert str(sealed) not in text


def test_change_leaves_what_is_not_typed_in() -> None:
    channels(ALIAS).save(1, webhook=WEBHOOK, token=TOKEN)
    url = f"{CHANNELS}{UserNotificationChannel.objects.get().pk}/change/"
    client = operator()
    assert client.post(url, {}).status_code == 302
    assert stored() == (WEBHOOK, TOKEN, False)
    client.post(url, {"enabled": "on", "remove_token": "on"})
    assert stored() == (WEBHOOK, None, True)
    client.post(url, {"enabled": "on", "token": "another"})
    assert stored() == (WEBHOOK, "another", True)


def test_new_webhook_drops_the_token_of_the_old_one() -> None:
    channels(ALIAS).save(1, webhook=WEBHOOK, token=TOKEN)
    url = f"{CHANNELS}{UserNotificationChannel.objects.get().pk}/change/"
    operator().post(url, {"enabled": "on", "webhook": f"{WEBHOOK}2"})
    assert stored() == (f"{WEBHOOK}2", None, True)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"webhook": f"https://evil.example/flow/api/trigger-webhook/{SECRET}"}, "neither feishu.cn nor"),
        ({"webhook": WEBHOOK.replace("https", "http")}, "must be https"),
        ({"webhook": WEBHOOK, "token": f"{TOKEN} x"}, "bearer token may hold"),
        ({"webhook": ""}, "needs a webhook"),
        ({"webhook": WEBHOOK, "user_id": "0"}, "above 0"),
        ({"webhook": WEBHOOK, "user_id": "2"}, "has a channel already"),
    ],
)
def test_what_is_not_allowed_is_refused_and_not_shown_again(typed: dict[str, str], said: str) -> None:
    channels(ALIAS).save(2, webhook=WEBHOOK)
    response = operator().post(f"{CHANNELS}add/", {"user_id": "1", "enabled": "on"} | typed)
    assert response.status_code == 200
    text = response.content.decode()
    assert said in text
    assert SECRET not in text
    assert TOKEN not in text
    assert UserNotificationChannel.objects.count() == 1


def test_user_of_a_channel_is_not_changed() -> None:
    channels(ALIAS).save(1, webhook=WEBHOOK)
    operator().post(f"{CHANNELS}{UserNotificationChannel.objects.get().pk}/change/", {"user_id": "2", "enabled": "on"})
    assert list(UserNotificationChannel.objects.values_list("user_id", flat=True)) == [1]


def test_who_may_only_view_changes_nothing() -> None:
    channels(ALIAS).save(1, webhook=WEBHOOK, token=TOKEN)
    row = UserNotificationChannel.objects.get()
    client = sign_in("view_usernotificationchannel")
    assert SECRET not in page(client, f"{CHANNELS}{row.pk}/change/")
    assert client.post(f"{CHANNELS}{row.pk}/change/", {"webhook": f"{WEBHOOK}2"}).status_code == 403
    assert stored() == (WEBHOOK, TOKEN, True)


def test_error_report_of_a_failed_save_does_not_hold_the_secrets(
    monkeypatch: pytest.MonkeyPatch, mailoutbox: list[Any], settings: Any
) -> None:
    settings.ADMINS = [("Admin", "admin@example.com")]

    def broken() -> None:
        raise RuntimeError("the database is on fire")

    monkeypatch.setattr("agent_events.notification.channels.UtcNow", broken)
    handler = AdminEmailHandler(include_html=True)
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)
    client = operator()
    client.raise_request_exception = False
    try:
        client.post(f"{CHANNELS}add/", {"user_id": "1", "enabled": "on", "webhook": WEBHOOK, "token": TOKEN})
    finally:
        logger.removeHandler(handler)
    texts = [text for mail in mailoutbox for text in (mail.body, *(part[0] for part in mail.alternatives))]
    assert any("the database is on fire" in text and "<html" in text for text in texts)
    for text in texts:
        assert SECRET not in text
        assert TOKEN not in text


def test_repeated_delivery_by_hand_keeps_the_rest_of_the_record() -> None:
    ids = make(ALIAS, 2, status="dead", last_error="why")
    change(ALIAS, ids[1], status="sent")
    sign_in(VIEW, "replay_outbox").post(f"{RECORDS}{ids[0]}/again/")
    assert (get(ALIAS, ids[0]).last_error, get(ALIAS, ids[1]).status) == ("why", "sent")
