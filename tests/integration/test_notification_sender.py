"""One request to a real server: what goes out, what is read, and where nothing goes to."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_events.notification.network import AddressInfo
from agent_events.notification.policy import Answer, NoAnswer
from agent_events.notification.sender import ANSWER_MAX_BYTES, WebhookSender
from agent_events.notification.webhooks import Webhook, parse_webhook
from outbox.exceptions import ConfigurationError
from tests.webhooks import (
    SECRET,
    TOKEN,
    Authority,
    WebhookServer,
    answer,
    close,
    drip,
    hang,
    huge,
    webhook_server,
)

BODY = b'{"notification_id": 7}'
QUICK = timedelta(milliseconds=400)
"""For requests that are to time out."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"))


def to(server: WebhookServer, host: str = "127.0.0.1") -> Webhook:
    return parse_webhook(server.url(host), allowed_hosts=[host])


def post(
    webhook: Webhook, *, token: str | None = None, timeout: timedelta = timedelta(seconds=5), **options: Any
) -> Answer | NoAnswer:
    return WebhookSender(timeout=timeout, **options).post(webhook, body=BODY, token=token)


def resolves_to(*addresses: str) -> Callable[[str, int], Sequence[AddressInfo]]:
    """Return a name server that knows these addresses for every name."""

    def lookup(_host: str, port: int) -> Sequence[AddressInfo]:
        return [
            (int(socket.AF_INET6 if ":" in each else socket.AF_INET), int(socket.SOCK_STREAM), 6, "", (each, port))
            for each in addresses
        ]

    return lookup


# --- what goes out and what comes back ---------------------------------------------------------------------------


def test_request_is_a_post_of_json_with_a_bearer_token(server: WebhookServer) -> None:
    assert post(to(server), token=TOKEN) == Answer(200, b'{"code": 0}')
    (received,) = server.received
    assert (received.method, received.path) == ("POST", f"/flow/api/trigger-webhook/{SECRET}")
    assert received.body == BODY
    assert received.headers["content-type"] == "application/json; charset=utf-8"
    assert received.headers["authorization"] == f"Bearer {TOKEN}"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"


def test_request_without_a_token_has_no_authorization(server: WebhookServer) -> None:
    post(to(server))
    assert "authorization" not in server.received[0].headers


@pytest.mark.parametrize("status", [200, 401, 429, 500])
def test_status_and_body_are_told(server: WebhookServer, status: int) -> None:
    server.answer = answer(status, {"code": 9, "msg": "no"})
    assert post(to(server)) == Answer(status, b'{"code": 9, "msg": "no"}')


def test_answer_in_chunks_is_read(server: WebhookServer) -> None:
    server.answer = lambda exchange: exchange.raw(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{"code\r\n5\r\n": 0}\r\n0\r\n\r\n'
    )
    assert post(to(server)) == Answer(200, b'{"code": 0}')


@pytest.mark.parametrize("size", [10 * 1024 * 1024, 10**15], ids=["10 MB", "without end"])
def test_large_answer_is_read_up_to_64_kibibytes(server: WebhookServer, size: int) -> None:
    server.answer = huge(size)
    assert post(to(server)) == Answer(200, b"x" * ANSWER_MAX_BYTES, cut=True)


def test_answer_that_is_compressed_is_not_blown_up(server: WebhookServer) -> None:
    server.answer = answer(200, b"\x1f\x8b\x08not really", Content_Encoding="gzip")
    assert post(to(server)) == Answer(200, b"\x1f\x8b\x08not really")


def test_redirect_to_another_host_is_not_followed(server: WebhookServer) -> None:
    with webhook_server() as other:
        for status in (301, 302, 303, 307, 308):
            server.answer = answer(status, b"", Location=other.url())
            got = post(to(server), token=TOKEN)
            assert isinstance(got, Answer)
            assert got.status == status
        assert other.received == []
    assert len(server.received) == 5


def test_proxies_of_the_environment_are_not_used(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook_server() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(to(server)) == Answer(200, b'{"code": 0}')
        assert proxy.received == []


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slow",
    [
        hang,
        drip(b"", b"H"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "status line drips", "headers drip", "endless 100s", "body drips", "chunks drip"],
)
def test_whole_request_ends_at_its_time_however_the_answer_drips(server: WebhookServer, slow: Any) -> None:
    server.answer = slow
    began = time.monotonic()
    assert post(to(server), timeout=QUICK) == NoAnswer("timeout", "no answer within 0.4 s")
    assert 0.3 < time.monotonic() - began < 2


def test_server_that_never_accepts_is_a_timeout() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        webhook = parse_webhook(f"http://127.0.0.1:{port}/flow/api/trigger-webhook/a", allowed_hosts=["127.0.0.1"])
        assert post(webhook, timeout=QUICK) == NoAnswer("timeout", "no answer within 0.4 s")
        for filler in fillers:
            filler.close()


def test_server_that_never_shakes_hands_is_a_timeout() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        webhook = parse_webhook(f"https://127.0.0.1:{port}/flow/api/trigger-webhook/a", allowed_hosts=["127.0.0.1"])
        assert post(webhook, timeout=QUICK) == NoAnswer("timeout", "no answer within 0.4 s")


def test_name_server_that_never_answers_is_a_timeout(server: WebhookServer) -> None:
    let_go = threading.Event()

    def lookup(_host: str, _port: int) -> Sequence[AddressInfo]:
        let_go.wait(30)
        return []

    got = post(to(server, "hooks.test"), timeout=QUICK, lookup=lookup)
    let_go.set()
    assert got == NoAnswer("timeout", "no answer within 0.4 s")
    assert server.received == []


# --- connections that break --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        close,
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this"),
        lambda exchange: exchange.raw(b"this is not HTTP\r\n\r\n"),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    ],
    ids=["closed", "cut off", "not HTTP", "endless header", "wrong length"],
)
def test_broken_answer_is_no_answer(server: WebhookServer, broken: Any) -> None:
    server.answer = broken
    got = post(to(server))
    assert isinstance(got, NoAnswer)
    assert got.code == "broken_answer"


def test_port_where_nobody_listens_is_no_answer() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        webhook = parse_webhook(f"http://127.0.0.1:{port}/flow/api/trigger-webhook/a", allowed_hosts=["127.0.0.1"])
        got = post(webhook)
    assert isinstance(got, NoAnswer)
    assert got.code == "not_connected"


def test_host_without_an_address_is_no_answer(server: WebhookServer) -> None:
    def lookup(_host: str, _port: int) -> Sequence[AddressInfo]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    got = post(to(server, "hooks.test"), lookup=lookup)
    assert isinstance(got, NoAnswer)
    assert got.code == "no_address"


# --- where it may go to ------------------------------------------------------------------------------------------


def feishu_at(server: WebhookServer) -> Webhook:
    """Return a webhook that is Feishu's by its name, on the port of a server of ours."""
    return Webhook("http", "www.feishu.cn", server.port, f"/flow/api/trigger-webhook/{SECRET}", named=False)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["8.8.8.8", "127.0.0.1"],
    ],
)
def test_host_that_leads_inside_is_refused_before_a_connection(server: WebhookServer, addresses: list[str]) -> None:
    got = post(feishu_at(server), lookup=resolves_to(*addresses))
    assert isinstance(got, NoAnswer)
    assert got.code == "address_refused"
    assert server.received == []


def test_connection_goes_to_the_address_that_was_checked(server: WebhookServer) -> None:
    asked: list[str] = []

    def lookup(host: str, port: int) -> Sequence[AddressInfo]:
        asked.append(host)
        return resolves_to("127.0.0.1" if len(asked) == 1 else "127.0.0.2")(host, port)

    assert post(to(server, "hooks.test"), lookup=lookup) == Answer(200, b'{"code": 0}')
    assert asked == ["hooks.test"]
    assert server.received[0].headers["host"] == f"hooks.test:{server.port}"


def test_second_address_is_tried_when_the_first_does_not_answer(server: WebhookServer) -> None:
    assert post(to(server, "hooks.test"), lookup=resolves_to("127.0.0.9", "127.0.0.1")) == Answer(200, b'{"code": 0}')


# --- TLS ---------------------------------------------------------------------------------------------------------


def test_https_checks_the_certificate_against_the_name_and_not_the_address(authority: Authority) -> None:
    with webhook_server(tls=authority.server_context("hooks.test")) as server:
        options = {"ca_file": str(authority.ca_file), "lookup": resolves_to("127.0.0.1")}
        assert post(to(server, "hooks.test"), token=TOKEN, **options) == Answer(200, b'{"code": 0}')
        assert server.received[0].headers["authorization"] == f"Bearer {TOKEN}"
        got = post(to(server, "other.test"), **options)
        assert isinstance(got, NoAnswer)
        assert got.code == "not_connected"
        assert len(server.received) == 1


def test_https_to_an_address_is_checked_against_the_address(authority: Authority) -> None:
    with webhook_server(tls=authority.server_context("127.0.0.1")) as server:
        assert post(to(server), ca_file=str(authority.ca_file)) == Answer(200, b'{"code": 0}')


def test_certificate_of_an_unknown_authority_is_refused(authority: Authority) -> None:
    with webhook_server(tls=authority.server_context("127.0.0.1")) as server:
        got = post(to(server))
        assert isinstance(got, NoAnswer)
        assert got.code == "not_connected"
        assert "certificate" in got.reason.lower()
        assert server.received == []


def test_https_answer_that_drips_ends_at_its_time(authority: Authority) -> None:
    with webhook_server(tls=authority.server_context("127.0.0.1")) as server:
        server.answer = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x")
        got = post(to(server), ca_file=str(authority.ca_file), timeout=QUICK)
        assert got == NoAnswer("timeout", "no answer within 0.4 s")


def test_authority_that_cannot_be_read_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="CA_FILE"):
        WebhookSender(timeout=QUICK, ca_file=str(tmp_path / "missing.pem"))


# --- secrets -----------------------------------------------------------------------------------------------------


def test_nothing_secret_is_logged_at_any_level(server: WebhookServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        post(to(server), token=TOKEN)
        server.answer = answer(302, {"path": SECRET}, Location=f"/{SECRET}", X_Token=TOKEN)
        post(to(server), token=TOKEN)
        server.answer = close
        got = post(to(server), token=TOKEN)
    assert len(server.received) == 3
    for text in (caplog.text, repr(got), repr(to(server))):
        assert SECRET not in text
        assert TOKEN not in text
