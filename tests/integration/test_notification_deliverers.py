"""Deliverers at work: outside of transactions, many at once, asleep beyond their leases, and through outages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import DataError, OperationalError, connections, transaction

from agent_events.notification.deliverer import OpenTransactionError
from agent_events.notification.models import NotificationRecord
from agent_events.notification.network import LookupFailedError
from agent_events.notification.policy import Answer
from agent_events.notification.records import NotificationRecords
from agent_events.notification.sender import WebhookSender
from agent_events.notification.webhooks import Webhook
from outbox.coordination.shutdown import StopFlag
from tests.notifications import LEASE, change, channels, claim, deliverer, get, make, make_due, one, outcome, statuses
from tests.threads import together
from tests.toys import ManualClock, RecordingStop
from tests.webhooks import TOKEN, Exchange, WebhookServer, answer, hang, webhook_server

pytestmark = pytest.mark.usefixtures("emptied_notifications")


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

        made = deliverer(alias, timeout=timedelta(seconds=2))
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
    assert "database unavailable, retrying" in caplog.text


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


def test_result_that_cannot_be_written_holds_up_no_other(
    alias: str, server: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The record comes again when its lease runs out, and no more often than it has attempts."""
    refused, *others = make(alias, 3)
    for user_id in (1, 2, 3):
        channels(alias).save(user_id, webhook=server.url())
    made, stop = deliverer(alias), RecordingStop()
    settle, wait = made._records.settle, stop.wait

    def refuse_one(record_id: int, **kwargs: Any) -> Any:
        if record_id == refused:
            raise DataError("Incorrect string value")
        return settle(record_id, **kwargs)

    def stop_when_idle(pause: timedelta, **_: Any) -> bool:
        if [outcome(alias, each)[0] for each in others] == ["sent", "sent"]:
            stop.set()
        return wait(pause)

    made._records.settle = refuse_one  # type: ignore[method-assign]
    stop.wait = stop_when_idle  # type: ignore[method-assign]
    made.run(stop)

    assert made.totals.sent == 2
    assert outcome(alias, refused)[:2] == ("sending", 1)
    assert f"notification {refused}: its result cannot be written and is dropped" in caplog.text
    assert "delivery failed, retrying: service=notification" in caplog.text

    make_due(alias)
    with pytest.raises(DataError):
        made.run(StopFlag(), once=True)


@pytest.mark.parametrize("once", [True, False])
def test_deliverer_does_not_begin_inside_a_transaction(alias: str, once: bool) -> None:
    with transaction.atomic(using=alias), pytest.raises(OpenTransactionError):
        deliverer(alias).run(RecordingStop(), once=once)


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
