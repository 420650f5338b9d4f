"""The statuses of a notification and the legal transitions between them.

Pure: ``records`` applies a transition by an UPDATE whose WHERE names ``sources``; no other code writes ``status``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Status(enum.StrEnum):
    """The value of the ``status`` column."""

    PENDING = "pending"
    """Nothing was sent yet."""
    SENDING = "sending"
    """A deliverer holds it under a lease; when that runs out, the next one takes it up."""
    SENT = "sent"
    FAILED = "failed"
    """An attempt failed; another one follows."""
    DEAD = "dead"
    """No attempt follows, until a person asks for it."""
    SKIPPED = "skipped"
    """The user has no webhook, or switched it off."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A named step from one of ``sources`` to ``target``."""

    name: str
    sources: tuple[Status, ...]
    target: Status


CLAIM: Final = Transition("claim", (Status.PENDING, Status.FAILED, Status.SENDING), Status.SENDING)
"""From ``sending`` only when its lease has run out: its deliverer died or was cut off."""
RELEASE: Final = Transition("release", (Status.SENDING,), Status.PENDING)
"""Claimed, but nothing was sent: given back, and the attempt does not count."""
MARK_SENT: Final = Transition("mark_sent", (Status.SENDING,), Status.SENT)
FAIL: Final = Transition("fail", (Status.SENDING,), Status.FAILED)
BURY: Final = Transition("bury", (Status.SENDING,), Status.DEAD)
SKIP: Final = Transition("skip", (Status.SENDING,), Status.SKIPPED)
REQUEUE: Final = Transition("requeue", (Status.DEAD, Status.SKIPPED), Status.PENDING)
"""A person wants it delivered after all."""

TRANSITIONS: Final = (CLAIM, RELEASE, MARK_SENT, FAIL, BURY, SKIP, REQUEUE)
