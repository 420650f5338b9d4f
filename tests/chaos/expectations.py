"""What must have become of an event, by what it told its handler. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.acceptance.promises import Row
from tests.chaos.ledger import SqlRow

MAX_INTERRUPTIONS: Final = 5
"""An event that ends its process or its connection so often in a row is dead."""

_BY_ATTEMPT: Final = (
    "swallow-error",
    "swallow-rollback",
    "raw-rollback",
    "raw-commit",
    "coroutine",
    "elsewhere",
    "hang-loop",
    "hang-sleeps",
    "hang-swallow",
    "hang-database",
    "hang-socket",
)


@dataclass(frozen=True, slots=True)
class Told:
    """What an event of the probe service told its handler, as its row says it now."""

    n: int
    fail_times: int = 0
    verdict: str = "ok"
    sleep_s: float = 0.0
    fault: str = ""
    times: int = 0

    @property
    def is_bad(self) -> bool:
        """Say whether its handler does anything but write its effect."""
        return bool(self.fail_times or self.verdict != "ok" or self.sleep_s or self.fault)


def told(payload: str) -> Told | None:
    """Read a payload column; None for what is no event of ours."""
    try:
        fields: Any = json.loads(payload)["payload"]
        n, every = int(fields["n"]), int(fields.get("every", 1))
    except (ValueError, KeyError, TypeError):
        return None
    if n % every:
        return Told(n)
    return Told(
        n,
        fail_times=int(fields.get("fail_times", 0)),
        verdict=str(fields.get("verdict", "ok")),
        sleep_s=int(fields.get("sleep_ms", 0)) / 1000,
        fault=str(fields.get("fault", "")),
        times=int(fields.get("times", 1)),
    )


@dataclass(frozen=True, slots=True)
class Expected:
    """What must have become of an event of the probe service."""

    statuses: frozenset[str]
    least: int = 0
    most: int = 0
    """Attempts that failed."""
    reason: str = ""
    """What the reason of its death begins with."""
    interruptions: int = 0

    @property
    def is_sound(self) -> bool:
        return self.statuses == {"consumed"} and not self.most

    @property
    def must_die(self) -> bool:
        return self.statuses == {"dead"}

    @property
    def may_die(self) -> bool:
        return "dead" in self.statuses


def _consumed(*, least: int = 0, most: int | None = None) -> Expected:
    return Expected(frozenset({"consumed"}), least, least if most is None else most)


def _dead(*, attempts: int = 0, reason: str = "", interruptions: int = 0) -> Expected:
    return Expected(frozenset({"dead"}), attempts, attempts, reason, interruptions)


def expectation(row: Row, told: Told | None, *, written: SqlRow | None, max_retry: int) -> Expected:
    """Say what must have become of an event; ``written`` is what it was when plain SQL wrote its row."""
    if written is not None:
        return Expected(frozenset({written.status}), reason=written.reason)
    if row.key.startswith("oversize"):
        return _dead(reason="the broker refused the record: ")
    if told is None:
        return _consumed()
    if told.fault:
        return _of_fault(told, max_retry=max_retry)
    if told.verdict == "poison":
        return _dead(attempts=max_retry, reason="RuntimeError: it never works")
    if told.verdict == "discard":
        return _dead(attempts=1, reason="Discard: nobody wants it")
    return _consumed(least=1 if told.verdict == "retry" else told.fail_times)


def _of_fault(told: Told, *, max_retry: int) -> Expected:
    if told.fault in _BY_ATTEMPT:
        return _dead(attempts=max_retry) if told.times >= max_retry else _consumed(least=told.times)
    if told.fault.startswith("kill-"):
        return _dead(interruptions=MAX_INTERRUPTIONS) if told.times >= MAX_INTERRUPTIONS else _consumed()
    if told.fault == "large-statement":
        # The server may say so before it ends the connection, or just end it: an attempt, or an interruption.
        if told.times >= max_retry + MAX_INTERRUPTIONS:
            return Expected(frozenset({"dead"}), 0, max_retry, "", MAX_INTERRUPTIONS)
        return _consumed(most=told.times)
    if told.fault == "row-lock":
        # One whose handler always runs into a lock pays attempts in the end.
        return Expected(frozenset({"consumed", "dead"}), 0, max_retry, "OperationalError: (1205")
    return _consumed()
