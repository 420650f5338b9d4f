"""Why no broker lets us in. kafka-python 3.0 knows, says it to its own log, and raises a time-out that says nothing.

Nothing depends on it: where a newer client has no such attribute, the reasons are missing and all else is as before.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaProtocolError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)

FRESH_S: Final = 60.0
"""Clients try again each second or so: an older reason is one of the past."""

_ANSWERS: Final = (
    IllegalSaslStateError,
    KafkaProtocolError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
"""What comes of an answer of the broker; it says more than how the connections after it ended."""


_WORDS: Final[Mapping[type[BaseException], str]] = {
    SaslAuthenticationFailedError: "the broker refuses the user or the password (sasl_mechanism {mechanism}): {text}",
    UnsupportedSaslMechanismError: "the broker does not take sasl_mechanism {mechanism}",
    IllegalSaslStateError: "the broker asks for no password on this port, and security_protocol is {protocol}",
    KafkaProtocolError: "the answer is none of Kafka's: the port wants TLS, and security_protocol is {protocol}; or it "
    "is no Kafka ({text})",
    KafkaConnectionError: "the broker closed the connection: it is stopping, or the port wants another "
    "security_protocol than {protocol}",
}


@dataclass(frozen=True, slots=True)
class _Refusal:
    at: float
    text: str
    is_answer: bool


class Refusals:
    """How the latest connections of all clients of one configuration ended."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: _Refusal | None = None

    @property
    def reason(self) -> str:
        """Why the latest connection failed; empty when it did not, or when that is long ago."""
        latest = self._latest
        return latest.text if latest is not None and self._clock() - latest.at <= FRESH_S else ""

    def explain(self, error: BaseException | str, text: str) -> str:
        """Return ``text``, the words for ``error``, with the reason; or this alone, where both are of a connection."""
        reason = self.reason
        if not reason or reason in text:
            return text
        return reason if isinstance(error, (*_ANSWERS, KafkaConnectionError)) else f"{text}; {reason}"

    def watch(self, network: Any, config: Mapping[str, Any]) -> None:
        """Have the connections of ``network``, a client made with ``config``, tell how they end."""
        manager = getattr(network, "_manager", None)  # no public way leads to the connections
        get_connection = getattr(manager, "get_connection", None)
        if manager is None or get_connection is None:
            return
        note = partial(
            self.note,
            protocol=config.get("security_protocol") or "PLAINTEXT",
            mechanism=config.get("sasl_mechanism") or "none",
        )
        watched: dict[Any, Any] = {}

        def get_watched(node_id: Any, *args: Any, **options: Any) -> Any:
            connection = get_connection(node_id, *args, **options)
            if watched.get(node_id) is not connection:
                watched[node_id] = connection
                _listen(connection, note)
            return connection

        manager.get_connection = get_watched

    def note(self, outcome: object, *, protocol: str, mechanism: str) -> None:
        """Take in how a connection began (``True``) or ended: an error, which is empty or None where we closed it."""
        if outcome is True:
            self._latest = None
        if not isinstance(outcome, BaseException):
            return
        is_answer = isinstance(outcome, _ANSWERS)
        if not (is_answer or outcome.args):
            return
        known = self._latest
        # Time is often up because of our own bounds, and an end without a word follows many an answer.
        if known is not None and self.reason and (_is_late(outcome) or (known.is_answer and _is_mute(outcome))):
            return
        self._latest = _Refusal(self._clock(), explain(outcome, protocol=protocol, mechanism=mechanism), is_answer)


def _listen(connection: Any, note: Callable[[object], None]) -> None:
    try:
        close, connection_made = connection.close, connection.connection_made
        connection.init_future.add_both(note)
        connection.close_future.add_both(note)
    except AttributeError:
        return

    def note_and_close(error: BaseException | None = None) -> None:
        # This is told of the broker's answer also when the connection is lost already, and its futures are done.
        note(error)
        close(error)

    def connection_made_of(transport: Any) -> None:
        _hear_the_last_answer(transport)
        connection_made(transport)

    connection.close, connection.connection_made = note_and_close, connection_made_of


def _hear_the_last_answer(transport: Any) -> None:
    """Have what came together with the end of a connection read before the end is: 3.0 throws it away.

    That a password is wrong is such an answer.
    """
    receive = getattr(transport, "_sock_recv", None)
    if receive is None:
        return
    ended: list[BaseException] = []

    def receive_all() -> tuple[bytes, BaseException | None]:
        if ended:
            return b"", ended[0]
        data, error = receive()
        if data and error is not None:
            ended.append(error)
            return data, None
        return data, error

    transport._sock_recv = receive_all  # noqa: SLF001


def explain(error: BaseException, *, protocol: str, mechanism: str) -> str:
    """Return in words what a person can do something about."""
    text = " ".join(" ".join(map(str, error.args)).split())
    if _is_late(error):
        return "no connection: no answer in time"
    if _is_mute(error):
        text = ""
    elif isinstance(error, KafkaConnectionError):
        return _explain_network(re.sub(r" \(_ssl\.c:\d+\)", "", text), protocol)
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            text = text.removeprefix(f"{kind.__name__}: ")
            return words.format(protocol=protocol, mechanism=mechanism, text=text)
    return f"no connection: {type(error).__name__}: {text}"


def _explain_network(text: str, protocol: str) -> str:
    if found := re.search(r"certificate verify failed: (.+)", text):
        is_misnamed = "mismatch" in found[1]
        what = "is for another name" if is_misnamed else "is not trusted (see ssl_cafile)"
        return f"the broker's certificate {what}: {found[1]}"
    if "UNEXPECTED_EOF" in text or "WRONG_VERSION_NUMBER" in text:
        return f"the port does not speak TLS, and security_protocol is {protocol}: {text}"
    if found := re.fullmatch(r"(\d+) E[A-Z0-9]+", text):
        text = os.strerror(int(found[1]))
    elif text == "DNS Resolution failure":
        text = "the broker's name cannot be resolved"
    return f"no connection: {text}"


def _is_mute(error: object) -> bool:
    """Say whether the connection ended without a word why."""
    return isinstance(error, KafkaConnectionError) and "socket disconnected" in str(error)


def _is_late(error: object) -> bool:
    return isinstance(error, KafkaTimeoutError | RequestTimedOutError) or "Connection timed out" in str(error)
