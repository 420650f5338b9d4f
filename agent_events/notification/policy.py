"""What an answer, or the lack of one, means for a notification, and how long to wait for the next attempt. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec

from agent_events.notification.lifecycle import BURY, FAIL, MARK_SENT, SKIP, Transition

RETRY_DELAYS: Final[Sequence[timedelta]] = tuple(timedelta(minutes=minutes) for minutes in (5, 10, 20, 30))
MAX_ATTEMPTS: Final = len(RETRY_DELAYS) + 1


class Outcome(enum.Enum):
    """How an attempt ended."""

    SENT = "sent"
    RETRY = "retry"
    """It may succeed later."""
    HOPELESS = "hopeless"
    """It would fail again."""
    SKIPPED = "skipped"
    """There is nowhere to send it to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a webhook answered; ``cut`` says that the body goes on behind what was read."""

    status: int
    body: bytes
    cut: bool = False


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why there is no answer; ``code`` is a short word to group by."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt came to. ``counts`` is false where no request went out and none is to be tried again."""

    outcome: Outcome
    code: str = ""
    reason: str = ""
    http_status: int | None = None
    counts: bool = True


def judge(answer: Answer | NoAnswer) -> Verdict:
    """Say what came of a request."""
    if isinstance(answer, NoAnswer):
        return Verdict(Outcome.RETRY, answer.code, answer.reason)
    status = answer.status
    if 200 <= status < 300:
        return _judge_success(answer)
    if status == 429 or status >= 500:
        return Verdict(Outcome.RETRY, f"http_{status}", f"the webhook answered HTTP {status}", status)
    if 300 <= status < 400:
        reason = f"the webhook answered HTTP {status}: a redirect is not followed, the webhook has to be set anew"
        return Verdict(Outcome.HOPELESS, f"http_{status}", reason, status)
    if status in {401, 403}:
        reason = f"the webhook answered HTTP {status}: the webhook or its bearer token is not accepted"
        return Verdict(Outcome.HOPELESS, f"http_{status}", reason, status)
    return Verdict(Outcome.HOPELESS, f"http_{status}", f"the webhook answered HTTP {status}", status)


def next_step(verdict: Verdict, *, attempt: int) -> tuple[Transition, timedelta | None]:
    """Return the transition after attempt number ``attempt`` (from 1) and, where one follows, the pause before it."""
    if verdict.outcome is Outcome.SENT:
        return MARK_SENT, None
    if verdict.outcome is Outcome.SKIPPED:
        return SKIP, None
    if verdict.outcome is Outcome.RETRY and attempt < MAX_ATTEMPTS:
        return FAIL, RETRY_DELAYS[max(attempt, 1) - 1]
    return BURY, None


def _judge_success(answer: Answer) -> Verdict:
    code, message = _application_code(answer.body)
    if code is None or (code == 0 and not isinstance(code, bool)) or code == "0":
        return Verdict(Outcome.SENT, http_status=answer.status)
    said = f": {message}" if isinstance(message, str) and message else ""
    return Verdict(Outcome.HOPELESS, "refused", f"the webhook answered with code {code!r}{said}", answer.status)


def _application_code(body: bytes) -> tuple[Any, Any]:
    """Return ``code`` and ``msg`` of a JSON object; what is none (or was cut) has no code."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None, None
    if not isinstance(decoded, dict):
        return None, None
    return decoded.get("code"), decoded.get("msg") or decoded.get("message")
