"""Delivery against a real server and real databases: every answer, outages, leases, many deliverers, secrets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core import serializers
from django.db import OperationalError, connections, transaction

from agent_events.notification.deliverer import Deliverer, OpenTransactionError
from agent_events.notification.events import publish_feishu_notification
from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from agent_events.notification.network import LookupFailedError
from agent_events.notification.policy import Answer
from agent_events.notification.records import NotificationRecords
from agent_events.notification.sender import WebhookSender
from agent_events.notification.webhooks import Webhook
from outbox.shutdown import StopFlag
from outbox.testing import drain
from tests.notifications import (
    KEY,
    LEASE,
    REQUESTED_AT,
    SEALER,
    change,
    channels,
    claim,
    deliverer,
    due_in,
    empty,
    get,
    make,
    make_due,
    records,
    request,
    statuses,
)
from tests.threads import together
from tests.toys import ManualClock
from tests.webhooks import (
    SECRET,
    TOKEN,
    Authority,
    Exchange,
    WebhookServer,
    answer,
    close,
    drip,
    hang,
    huge,
    webhook_server,
)


@pytest.fixture
def alias(alias: str) -> Iterator[str]:
    yield alias
    empty(alias)


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with webhook_server() as running:
        yield running


def one(alias: str, server: WebhookServer, *, token: str | None = None) -> int:
    """Create a record of user 1, whose webhook is the server; return its id."""
    channels(alias).save(1, webhook=server.url(), token=token)
    return make(alias)[0]


def outcome(alias: str, record_id: int) -> tuple[str, int, str, int | None]:
    record = get(alias, record_id)
    return record.status, record.attempt_count, record.last_error_code, record.http_status


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


# --- no request inside a transaction -----------------------------------------------------------------------------


def test_no_request_goes_out_inside_a_database_transaction(alias: str, server: WebhookServer) -> None:
    """While a request is on its way, another connection sees the claim and can write the very row."""
    record_id = one(alias, server)
    seen: list[Any] = []

    def look(exchange: Exchange) -> None:
        try:
            record = get(alias, record_id)
            seen.append((record.status, record.attempt_count))
            with transaction.atomic(using=alias):
                rows = NotificationRecord.objects.using(alias).filter(pk=record_id)
                if connections[alias].features.has_select_for_update_nowait:
                    rows = rows.select_for_update(nowait=True)
                else:
                    with connections[alias].cursor() as cursor:
                        cursor.execute("PRAGMA busy_timeout = 0")
                seen.append(rows.get().pk)
                change(alias, record_id, trace_id="written meanwhile")
        except Exception as error:  # noqa: BLE001 - the test shows it
            seen.append(error)
        finally:
            connections.close_all()
        exchange.reply(200, {"code": 0})

    server.answer = look
    deliverer(alias, timeout=timedelta(seconds=5)).step()
    assert seen == [("sending", 1), record_id]
    assert (get(alias, record_id).status, get(alias, record_id).trace_id) == ("sent", "written meanwhile")


def test_delivery_inside_a_transaction_is_refused(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    with transaction.atomic(using=alias), pytest.raises(OpenTransactionError, match=alias):
        deliverer(alias).step()
    assert outcome(alias, record_id) == ("pending", 0, "", None)
    assert server.received == []


# --- many at once ------------------------------------------------------------------------------------------------


def test_any_number_of_deliverers_send_each_record_once(alias: str, server: WebhookServer) -> None:
    ids = make(alias, 40)
    for user_id in range(1, 41):
        channels(alias).save(user_id, webhook=server.url())

    def deliver(_: int) -> int:
        return deliverer(alias, batch_size=3, timeout=timedelta(seconds=10)).run(StopFlag(), once=True).sent

    sent = together(deliver, range(4))
    assert sum(sent) == 40
    assert sorted(body["notification_id"] for body in server.bodies) == sorted(ids)
    assert set(statuses(alias)) == {"sent"}


def test_slow_webhook_does_not_hold_up_the_others_of_its_batch(alias: str, server: WebhookServer) -> None:
    with webhook_server() as slow:
        slow.answer = hang
        ids = make(alias, 5)
        for user_id in range(1, 6):
            channels(alias).save(user_id, webhook=slow.url() if user_id == 1 else server.url())
        seen: list[list[str]] = []

        class Watching(NotificationRecords):
            def settle(self, *args: Any, **kwargs: Any) -> Any:
                settled = super().settle(*args, **kwargs)
                seen.append(statuses(alias))
                return settled

        made = deliverer(alias)
        made._records = Watching(alias)
        made.step()
    assert seen[3].count("sent") == 4
    assert seen[3].count("sending") == 1
    assert outcome(alias, ids[0]) == ("failed", 1, "timeout", None)


def test_claimed_batch_is_no_larger_than_asked_for(alias: str, server: WebhookServer) -> None:
    make(alias, 5)
    made = deliverer(alias, batch_size=2)
    made.step()
    assert sorted(statuses(alias)) == ["pending"] * 3 + ["skipped"] * 2
    assert made.run(StopFlag(), once=True).skipped == 5


def test_loop_ends_when_asked_to_and_finishes_what_it_holds(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    stop = StopFlag()

    def stop_meanwhile(exchange: Exchange) -> None:
        stop.set()
        exchange.reply(200, {"code": 0})

    server.answer = stop_meanwhile
    assert deliverer(alias).run(stop).sent == 1
    assert outcome(alias, record_id) == ("sent", 1, "", 200)


# --- leases ------------------------------------------------------------------------------------------------------


def test_stale_deliverer_loses(alias: str, server: WebhookServer, caplog: pytest.LogCaptureFixture) -> None:
    """It sleeps through its lease with a request on its way; the next one delivers; its late result is dropped."""
    record_id = one(alias, server)

    def taken_over(exchange: Exchange) -> None:
        server.answer = answer(200, {"code": 0})
        try:
            make_due(alias)
            assert deliverer(alias).step() is True
        finally:
            connections.close_all()
        exchange.reply(401)

    server.answer = taken_over
    made = deliverer(alias, timeout=timedelta(seconds=5))
    made.step()
    assert outcome(alias, record_id) == ("sent", 2, "", 200)
    assert (made.totals.lost, made.totals.dead) == (1, 0)
    assert "taken over" in caplog.text


def test_deliverer_that_slept_after_its_claim_sends_nothing(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    clock = ManualClock()
    made = deliverer(alias, clock=clock)
    prepare = made._preparation.request

    class Sleepy:
        def request(self, *args: Any, **kwargs: Any) -> Any:
            clock.advance(LEASE.total_seconds())
            return prepare(*args, **kwargs)

    made._preparation = Sleepy()  # type: ignore[assignment]
    made.step()
    assert server.received == []
    assert outcome(alias, record_id) == ("pending", 0, "", None)


def test_interrupted_attempts_are_bounded_too(alias: str, server: WebhookServer) -> None:
    """A user gets no more requests than there are attempts, also when each attempt ends in a crash."""
    record_id = one(alias, server)
    for attempt in range(1, 6):
        assert [each.attempt for each in claim(alias, token=f"crashed-{attempt}")] == [attempt]
        make_due(alias)
    deliverer(alias).step()
    assert outcome(alias, record_id) == ("dead", 5, "interrupted", None)
    assert server.received == []


# --- outages -----------------------------------------------------------------------------------------------------


def cut_connection(alias: str) -> Any:
    """Return a function that ends this thread's connection to a server from another one; None for SQLite."""
    connection = connections[alias]
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()" if connection.vendor == "mysql" else "SELECT pg_backend_pid()")
        (number,) = cursor.fetchone()
    kill = f"KILL {number}" if connection.vendor == "mysql" else f"SELECT pg_terminate_backend({number})"

    def cut() -> None:
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute(kill)
        finally:
            connections.close_all()

    return cut


class AwayOnce:
    """Lets the database be away once: the first statement that matches fails before it is carried out."""

    def __init__(self, *words: str) -> None:
        self.words, self.failed = words, 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not self.failed and all(word in sql for word in self.words):
            self.failed += 1
            raise OperationalError("disk I/O error")
        return execute(sql, params, many, context)


def test_result_survives_an_outage_of_the_database_and_nothing_is_sent_twice(
    alias: str, server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    record_id = one(alias, server)
    cut = cut_connection(alias)

    def answer_and_cut(exchange: Exchange) -> None:
        if cut is not None:
            cut()
        exchange.reply(200, {"code": 0})

    server.answer = answer_and_cut
    made = deliverer(alias, timeout=timedelta(seconds=5))
    if cut is None:
        away = AwayOnce("UPDATE", "sent_at")
        claimed = made._records.claim

        def claim_then_go_away(**kwargs: Any) -> Any:
            got = claimed(**kwargs)
            connections[alias].execute_wrappers.append(away)
            return got

        made._records.claim = claim_then_go_away  # type: ignore[method-assign]
    try:
        assert made.run(StopFlag(), once=True).sent == 1
    finally:
        connections[alias].execute_wrappers.clear()
    assert outcome(alias, record_id) == ("sent", 1, "", 200)
    assert len(server.received) == 1
    assert "is away" in caplog.text


@pytest.mark.parametrize("what", ["user_notification_channels", "SELECT", "UPDATE"])
def test_outage_around_the_claim_costs_no_attempt(alias: str, server: WebhookServer, what: str) -> None:
    record_id = one(alias, server)
    away = AwayOnce(what)
    with connections[alias].execute_wrapper(away):
        made = deliverer(alias)
        with pytest.raises(OperationalError):
            made.step()
        assert made.run(StopFlag(), once=True).sent == 1
    assert away.failed == 1
    assert outcome(alias, record_id) == ("sent", 1, "", 200)


def test_outage_while_one_result_is_written_loses_no_other_of_the_batch(alias: str, server: WebhookServer) -> None:
    ids = make(alias, 3)
    channels(alias).save(2, webhook=server.url())
    channels(alias).save(3, webhook=server.url())
    away = AwayOnce("UPDATE", "sent_at")
    made = deliverer(alias)
    with connections[alias].execute_wrapper(away):
        with pytest.raises(OperationalError):
            made.step()
        totals = made.run(StopFlag(), once=True)
    assert (away.failed, totals.sent, totals.skipped, totals.lost) == (1, 2, 1, 0)
    assert [outcome(alias, each)[:2] for each in ids] == [("skipped", 0), ("sent", 1), ("sent", 1)]
    assert len(server.received) == 2


def test_error_in_the_code_is_on_the_record_and_stops_nobody(alias: str, server: WebhookServer) -> None:
    class Broken(WebhookSender):
        def post(self, webhook: Webhook, *, body: bytes, token: str | None) -> Answer:
            if b'"user_id":1,' in body:
                raise LookupFailedError(f"a bug with {webhook.target} and {token}")
            return Answer(200, b"")

    ids = make(alias, 2)
    for user_id in (1, 2):
        channels(alias).save(user_id, webhook=server.url(), token=TOKEN)
    deliverer(alias, sender=Broken(timeout=timedelta(seconds=1))).step()
    assert [outcome(alias, each) for each in ids] == [("failed", 1, "error", None), ("sent", 1, "", 200)]
    error = get(alias, ids[0]).last_error
    assert error == "LookupFailedError: a bug with **** and ****"


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
    assert channels(alias).reseal() == 2
    after = channels(alias).of_users([1])[1]
    assert (before.webhook, before.token) != (after.webhook, after.token)
    assert stored_secrets(alias, 1) == (server.url(), TOKEN)


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
