"""Why no broker lets us in: said in words that a person can act on, and for as long as it is true."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import (
    IllegalSaslStateError,
    InvalidReceiveError,
    KafkaConnectionError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from outbox.brokers.kafka.refusals import FRESH_S, Refusals, explain

WRONG_PASSWORD = SaslAuthenticationFailedError("SaslAuthenticationFailedError: Invalid username or password")
MUTE = KafkaConnectionError("socket disconnected")
CONFIG = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_plain_password": "hush"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> Refusals:
    return Refusals(clock=clock)


def note(refusals: Refusals, *outcomes: object) -> str:
    for outcome in outcomes:
        refusals.note(outcome, protocol="SASL_SSL", mechanism="PLAIN")
    return refusals.reason


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            WRONG_PASSWORD,
            "the broker refuses the user or the password (sasl_mechanism PLAIN): Invalid username or password",
        ),
        (UnsupportedSaslMechanismError(), "the broker does not take sasl_mechanism PLAIN"),
        (
            IllegalSaslStateError(),
            "the broker asks for no password on this port, and security_protocol is SASL_SSL",
        ),
        (
            InvalidReceiveError("Invalid frame length: 352518912"),
            (
                "the answer is none of Kafka's: the port wants TLS, and security_protocol is SASL_SSL; "
                "or it is no Kafka (Invalid frame length: 352518912)"
            ),
        ),
        (
            MUTE,
            (
                "the broker closed the connection: it is stopping, or the port wants another security_protocol "
                "than SASL_SSL"
            ),
        ),
        (
            KafkaConnectionError(
                "Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
                "in certificate chain (_ssl.c:1006)"
            ),
            "the broker's certificate is not trusted (see ssl_cafile): self-signed certificate in certificate chain",
        ),
        (
            KafkaConnectionError(
                "Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, "
                "certificate is not valid for 'kafka'. (_ssl.c:1006)"
            ),
            "the broker's certificate is for another name: Hostname mismatch, certificate is not valid for 'kafka'.",
        ),
        (
            KafkaConnectionError("Handshake failed: [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            (
                "the port does not speak TLS, and security_protocol is SASL_SSL: Handshake failed: "
                "[SSL: WRONG_VERSION_NUMBER] wrong version number"
            ),
        ),
        (KafkaConnectionError("111 ECONNREFUSED"), "no connection: Connection refused"),
        (KafkaConnectionError("DNS Resolution failure"), "no connection: the broker's name cannot be resolved"),
        (KafkaConnectionError("Connection timed out"), "no connection: no answer in time"),
        (RequestTimedOutError("Request timed out after 12 ms"), "no connection: no answer in time"),
        (OSError("no route"), "no connection: OSError: no route"),
    ],
)
def test_reasons_are_in_words(error: BaseException, words: str) -> None:
    assert explain(error, protocol="SASL_SSL", mechanism="PLAIN") == words


# --- which of them -----------------------------------------------------------------------------------------------


def test_an_answer_says_more_than_the_ends_after_it(refusals: Refusals) -> None:
    late = RequestTimedOutError("Request timed out after 12 ms")
    assert "password" in note(refusals, WRONG_PASSWORD, MUTE, None, KafkaConnectionError(), late)


def test_what_is_known_now_goes_before_an_answer(refusals: Refusals) -> None:
    assert note(refusals, WRONG_PASSWORD, KafkaConnectionError("111 ECONNREFUSED")).endswith("Connection refused")
    assert "closed the connection" in note(refusals, MUTE)
    assert "password" in note(refusals, WRONG_PASSWORD)


def test_nothing_is_said_once_somebody_was_let_in(refusals: Refusals) -> None:
    assert note(refusals, WRONG_PASSWORD, True) == ""


def test_nothing_is_said_of_what_is_long_past(refusals: Refusals, clock: Clock) -> None:
    note(refusals, WRONG_PASSWORD)
    clock.now += FRESH_S
    assert refusals.reason
    clock.now += 0.1
    assert refusals.reason == ""
    assert "closed the connection" in note(refusals, MUTE)


def test_reason_is_told_with_what_failed_because_of_it_and_once(refusals: Refusals) -> None:
    late = KafkaTimeoutError("Failed to get offsets")
    assert refusals.explain(late, "late") == "late"
    reason = note(refusals, WRONG_PASSWORD)
    assert refusals.explain(late, "late") == f"late; {reason}"
    assert refusals.explain("text", "text") == f"text; {reason}"
    assert refusals.explain(f"already: {reason}", f"already: {reason}") == f"already: {reason}"
    for error in (WRONG_PASSWORD, MUTE):
        assert refusals.explain(error, str(error)) == reason


# --- where it comes from -----------------------------------------------------------------------------------------


class Connection:
    """What is used of the client's connections."""

    def __init__(self) -> None:
        self.init_future, self.close_future = Future(), Future()
        self.closed_with: list[BaseException | None] = []
        self.transport: Any = None

    def close(self, error: BaseException | None = None) -> None:
        self.closed_with.append(error)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


def watched(refusals: Refusals, connection: object) -> Any:
    manager = SimpleNamespace(get_connection=lambda node_id, **options: connection)
    refusals.watch(SimpleNamespace(_manager=manager), CONFIG)
    assert manager.get_connection("bootstrap-0", timeout_ms=1) is connection
    assert manager.get_connection("bootstrap-0") is connection
    return connection


def test_connections_tell_how_they_begin_and_end(refusals: Refusals) -> None:
    watched(refusals, Connection()).init_future.failure(WRONG_PASSWORD)
    assert "password" in refusals.reason
    one = watched(refusals, Connection())
    one.init_future.success(True)
    assert refusals.reason == ""
    one.close_future.failure(KafkaConnectionError("111 ECONNREFUSED"))
    assert "refused" in refusals.reason


def test_answer_of_a_connection_that_is_lost_already_is_heard(refusals: Refusals) -> None:
    one = watched(refusals, Connection())
    one.init_future.failure(MUTE)
    one.close(WRONG_PASSWORD)
    assert "Invalid username or password" in refusals.reason
    assert "hush" not in refusals.reason
    assert one.closed_with == [WRONG_PASSWORD]


def test_what_comes_together_with_the_end_is_read_before_it(refusals: Refusals) -> None:
    received = iter([(b"begin", None), (b"answer", MUTE)])
    transport = SimpleNamespace(_sock_recv=lambda: next(received))
    one = watched(refusals, Connection())
    one.connection_made(transport)
    assert one.transport is transport
    heard = [transport._sock_recv() for _ in range(4)]
    assert heard == [(b"begin", None), (b"answer", None), (b"", MUTE), (b"", MUTE)]


def test_client_without_these_attributes_works_without_reasons(refusals: Refusals) -> None:
    refusals.watch(SimpleNamespace(), CONFIG)
    refusals.watch(SimpleNamespace(_manager=SimpleNamespace()), CONFIG)
    watched(refusals, SimpleNamespace())
    one = watched(refusals, Connection())
    one.connection_made("a transport of another kind")
    assert one.transport == "a transport of another kind"
    assert refusals.reason == ""


def test_installed_client_has_these_attributes() -> None:
    """A newer one that lacks them works on in silence: this is where it shows."""
    assert hasattr(KafkaConnectionManager, "get_connection")
    assert {"init_future", "close_future", "close", "connection_made"} <= set(dir(KafkaConnection))
    assert all(hasattr(kind, "_sock_recv") for kind in (KafkaTCPTransport, KafkaSSLTransport))
    network = KafkaNetClient(bootstrap_servers="127.0.0.1:1")
    try:
        assert isinstance(network._manager, KafkaConnectionManager)
    finally:
        network.close()
