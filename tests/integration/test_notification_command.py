"""`manage.py deliver_notifications` and `reseal_webhooks` as processes: killed, stopped, run once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from outbox.coordination.shutdown import StopFlag
from tests.notifications import KEY, change, channels, deliverer, due_in, empty, get, make, make_due, statuses
from tests.waiting import wait_until
from tests.webhooks import SECRET, TOKEN, Exchange, WebhookServer, answer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alias(alias: str) -> Iterator[str]:
    yield alias
    empty(alias)


def database_url(alias: str) -> str:
    """Return the URL of the database that this test runs on."""
    config = connections[alias].settings_dict
    if connections[alias].vendor == "sqlite":
        return f"sqlite:///{config['NAME']}"
    scheme = "mysql" if connections[alias].vendor == "mysql" else "postgres"
    login = f"{quote(config['USER'])}:{quote(config['PASSWORD'])}"
    return f"{scheme}://{login}@{config['HOST']}:{config['PORT']}/{config['NAME']}"


@contextmanager
def process(alias: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``manage.py deliver_notifications`` as a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"DJANGO_SETTINGS_MODULE", "OUTBOX"}
    } | {
        "READ_DOT_ENV": "false",
        "SECRET_KEY": "for-tests-only",
        "DATABASE_URL": database_url(alias),
        "NOTIFICATION_ALLOWED_HOSTS": "127.0.0.1",
        "NOTIFICATION_SECRET_KEYS": KEY,
        "NOTIFICATION_SITE_URL": "https://smartflow.example",
        "LOG_LEVEL": "DEBUG",
    }
    running = subprocess.Popen(
        [sys.executable, "manage.py", "deliver_notifications", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def hold(server: WebhookServer) -> threading.Event:
    """Have the server keep requests waiting; return the event that lets it answer."""
    let_go = threading.Event()

    def waiting(exchange: Exchange) -> None:
        let_go.wait(30)
        exchange.reply(200, {"code": 0})

    server.answer = waiting
    return let_go


def one(alias: str, server: WebhookServer) -> int:
    channels(alias).save(1, webhook=server.url(), token=TOKEN)
    return make(alias)[0]


def test_record_of_a_process_that_was_killed_while_sending_is_taken_up_when_its_lease_runs_out(
    alias: str, server: WebhookServer
) -> None:
    record_id = one(alias, server)
    let_go = hold(server)
    with process(alias) as running:
        wait_until(lambda: server.received, timeout=30, message="the request")
        running.send_signal(signal.SIGKILL)
        assert running.wait(10) == -signal.SIGKILL
    let_go.set()
    assert (get(alias, record_id).status, get(alias, record_id).attempt_count) == ("sending", 1)
    assert timedelta(seconds=30) < due_in(alias, record_id) <= timedelta(seconds=60)

    server.answer = answer(200, {"code": 0})
    assert deliverer(alias).run(StopFlag(), once=True).sent == 0
    make_due(alias)
    assert deliverer(alias).run(StopFlag(), once=True).sent == 1
    assert (get(alias, record_id).status, get(alias, record_id).attempt_count) == ("sent", 2)
    assert [body["notification_id"] for body in server.bodies] == [record_id, record_id]


def test_sigterm_finishes_the_request_in_hand_and_no_secret_is_printed(alias: str, server: WebhookServer) -> None:
    record_id = one(alias, server)
    let_go = hold(server)
    with process(alias) as running:
        wait_until(lambda: server.received, timeout=30, message="the request")
        running.send_signal(signal.SIGTERM)
        let_go.set()
        printed, _ = running.communicate(timeout=20)
    assert running.returncode == 0
    assert "sent 1, failed 0, dead 0, skipped 0, lost 0" in printed
    assert get(alias, record_id).status == "sent"
    assert f"notification {record_id} of user 1: sent at attempt 1" in printed
    for secret in (SECRET, TOKEN, KEY):
        assert secret not in printed


def test_once_sends_what_is_due_and_ends(alias: str, server: WebhookServer, settings: Any, capsys: Any) -> None:
    settings.NOTIFICATION = {"ALLOWED_HOSTS": ["127.0.0.1"], "SECRET_KEYS": [KEY]}
    ids = make(alias, 3)
    channels(alias).save(1, webhook=server.url())
    channels(alias).save(2, webhook=server.url())
    later = get(alias, ids[1]).next_retry_at
    assert later is not None
    change(alias, ids[1], status="failed", attempt_count=1, next_retry_at=later + timedelta(minutes=5))
    call_command("deliver_notifications", "--once", "--batch-size", "1")
    assert "sent 1, failed 0, dead 0, skipped 1, lost 0" in capsys.readouterr().out
    assert [get(alias, each).status for each in ids] == ["sent", "failed", "skipped"]


@pytest.mark.parametrize(
    "wrong", [("--batch-size", "0"), ("--batch-size", "x"), ("--poll-interval", "5"), ("--poll-interval", "0s")]
)
def test_wrong_argument_is_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(CommandError, match=wrong[0]):
        call_command("deliver_notifications", "--once", *wrong)


@pytest.mark.parametrize("command", ["deliver_notifications", "reseal_webhooks"])
def test_wrong_setting_is_said_in_one_line(alias: str, settings: Any, command: str) -> None:
    settings.NOTIFICATION = {"LEASE_SECONDS": 1}
    with pytest.raises(CommandError, match="LEASE_SECONDS"):
        call_command(command)


def test_reseal_brings_everything_under_the_newest_key(alias: str, server: WebhookServer, settings: Any) -> None:
    one(alias, server)
    settings.NOTIFICATION = {"ALLOWED_HOSTS": ["127.0.0.1"], "SECRET_KEYS": ["new", KEY]}
    call_command("reseal_webhooks")
    settings.NOTIFICATION = {"ALLOWED_HOSTS": ["127.0.0.1"], "SECRET_KEYS": ["new"]}
    call_command("deliver_notifications", "--once")
    assert statuses(alias) == ["sent"]
    settings.NOTIFICATION = {"SECRET_KEYS": ["third"]}
    with pytest.raises(CommandError, match="sealed under another key"):
        call_command("reseal_webhooks")
