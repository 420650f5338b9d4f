"""The statuses of an outbox row and the legal transitions between them.

Pure: the repository applies a transition by an UPDATE whose WHERE names ``sources``; no other code writes ``status``.

``CONSUME`` is legal from ``pending`` as well as from ``published``: a record on the topic proves that the row was
sent, and a consumer may be faster than the relay that is about to mark the row.

``INTERRUPT`` comes before a suspect event is tried: should its handler take the process down, nobody is left to write
that down. It puts the row into its back-off, from where ``CONSUME`` is legal.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.StrEnum):
    """The value of the ``status`` column, shared with the Go services."""

    PENDING = "pending"
    PUBLISHED = "published"
    CONSUMED = "consumed"
    DEAD = "dead"


UNFINISHED = (Status.PENDING, Status.PUBLISHED)
"""A row in one of these still has its effect before it, so later events of its key wait for it."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A named step from one of ``sources`` to ``target``."""

    name: str
    sources: tuple[Status, ...]
    target: Status


MARK_PUBLISHED = Transition("mark_published", (Status.PENDING,), Status.PUBLISHED)
CONSUME = Transition("consume", UNFINISHED, Status.CONSUMED)
RETRY = Transition("retry", UNFINISHED, Status.PENDING)
WAIT = Transition("wait", UNFINISHED, Status.PENDING)
INTERRUPT = Transition("interrupt", UNFINISHED, Status.PENDING)
REDELIVER = Transition("redeliver", (Status.PUBLISHED,), Status.PENDING)
BURY = Transition("bury", UNFINISHED, Status.DEAD)
REPLAY = Transition("replay", (Status.DEAD,), Status.PENDING)
GIVE_UP = Transition("give_up", (Status.DEAD,), Status.DEAD)
EDIT = Transition("edit", (Status.DEAD,), Status.DEAD)

TRANSITIONS = (MARK_PUBLISHED, CONSUME, RETRY, WAIT, INTERRUPT, REDELIVER, BURY, REPLAY, GIVE_UP, EDIT)
