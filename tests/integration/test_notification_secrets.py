"""Webhooks and tokens: sealed in their channels, replaced together, and never logged or stored in the open."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.core import serializers
from django.db import connections

from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from outbox.coordination.shutdown import StopFlag
from tests.notifications import KEY, SEALER, channels, deliverer, get, one
from tests.threads import together
from tests.webhooks import SECRET, TOKEN, WebhookServer, answer, close, hang

pytestmark = pytest.mark.usefixtures("emptied_notifications")


# --- secrets -----------------------------------------------------------------------------------------------------


def everything_stored(alias: str) -> str:
    """Return the service's tables as text, as a dump of the database would show them."""
    rows = [*NotificationRecord.objects.using(alias).all(), *UserNotificationChannel.objects.using(alias).all()]
    return serializers.serialize("json", rows)


@pytest.mark.parametrize(
    "answers",
    [
        answer(200, {"code": 0}),
        answer(200, {"code": 1, "msg": f"flow {SECRET} does not know {TOKEN}"}),
        answer(401, f"Bearer {TOKEN} for /flow/api/trigger-webhook/{SECRET}\x00 is wrong".encode()),
        answer(500, {"echo": f"\\/flow\\/api\\/trigger-webhook\\/{SECRET}"}),
        answer(302, b"", Location=f"https://elsewhere.example/{SECRET}?token={TOKEN}"),
        close,
        hang,
    ],
    ids=["sent", "code", "401", "500", "redirect", "closed", "time-out"],
)
def test_secrets_are_neither_logged_nor_stored(
    alias: str, server: WebhookServer, answers: Any, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    server.answer = answers
    connections[alias].force_debug_cursor = True
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="django.db.backends"):
        record_id = one(alias, server, token=TOKEN)
        deliverer(alias).run(StopFlag(), once=True)
    connections[alias].force_debug_cursor = False
    assert "user_notification_channels" in caplog.text, "the SQL is not logged"
    assert server.received[0].headers["authorization"] == f"Bearer {TOKEN}"
    printed = capfd.readouterr()
    record = get(alias, record_id)
    assert record.request_json is not None
    assert "****" in record.request_json
    stored = everything_stored(alias)
    for text in (caplog.text, printed.out, printed.err, stored, repr(record), str(record)):
        assert SECRET not in text
        assert TOKEN not in text
        assert KEY not in text


def test_answer_is_kept_for_a_person_to_read(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    server.answer = answer(400, {"msg": f"no flow {SECRET}"})
    deliverer(alias).step()
    assert get(alias, record_id).response_text == '{"msg": "no flow ****"}'


# --- channels ----------------------------------------------------------------------------------------------------


def stored_secrets(alias: str, user_id: int) -> tuple[str | None, str | None]:
    found = channels(alias).of_users([user_id])[user_id]
    return (
        SEALER.open(found.webhook) if found.webhook else None,
        SEALER.open(found.token) if found.token else None,
    )


def test_new_webhook_drops_the_token_of_the_old_one(alias: str, server: WebhookServer) -> None:
    store = channels(alias)
    store.save(1, webhook=server.url(), token=TOKEN)
    store.save(1, enabled=False)
    assert stored_secrets(alias, 1) == (server.url(), TOKEN)
    store.save(1, webhook=server.url(secret="another-one"))
    assert stored_secrets(alias, 1) == (server.url(secret="another-one"), None)
    store.save(1, token="next-token")
    assert stored_secrets(alias, 1)[1] == "next-token"
    store.save(1, token="")
    assert stored_secrets(alias, 1) == (server.url(secret="another-one"), None)
    assert UserNotificationChannel.objects.using(alias).count() == 1


def test_refused_webhook_or_token_changes_nothing(alias: str, server: WebhookServer) -> None:
    store = channels(alias)
    store.save(1, webhook=server.url(), token=TOKEN)
    for wrong in ({"webhook": "https://evil.example/flow/api/trigger-webhook/a"}, {"token": "a b"}):
        with pytest.raises(ValueError, match=r"webhook|token"):
            store.save(1, **wrong)
    assert stored_secrets(alias, 1) == (server.url(), TOKEN)


def test_people_at_once_make_one_channel_of_a_user(alias: str, server: WebhookServer) -> None:
    together(lambda number: channels(alias).save(1, webhook=server.url(secret=f"s-{number}")), range(8))
    assert UserNotificationChannel.objects.using(alias).count() == 1


def test_everything_can_be_sealed_anew(alias: str, server: WebhookServer) -> None:
    channels(alias).save(1, webhook=server.url(), token=TOKEN)
    channels(alias).save(2, enabled=False)
    before = channels(alias).of_users([1])[1]
    told: list[int] = []
    assert channels(alias).reseal(told.append) == 2
    assert told == list(range(1, channels(alias).count() + 1))
    after = channels(alias).of_users([1])[1]
    assert (before.webhook, before.token) != (after.webhook, after.token)
    assert stored_secrets(alias, 1) == (server.url(), TOKEN)
