"""The step that decides what to do with a batch of locked rows; pure.

The batch is a matter of speed only: its result is what event by event would have given. So an event whose predecessor
is unfinished waits, and deliveries are grouped for list handlers only as far as the order per key allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from outbox.declarations.handlers import Delivery, Handler
from outbox.exceptions import UnreadableError
from outbox.storage.rows import Blocker, Locked


class Readable(msgspec.Struct, frozen=True):
    """A row that can be handled."""

    delivery: Delivery[Any]
    handler: Handler


@dataclass(frozen=True, slots=True)
class Burial:
    """A row that can never be handled."""

    row: Locked
    error: UnreadableError
    parks_key: bool


@dataclass(slots=True)
class Plan:
    """Every live row is in exactly one of ``deliver``, ``bury`` and ``wait``."""

    deliver: list[Readable] = field(default_factory=list)
    bury: list[Burial] = field(default_factory=list)
    wait: list[tuple[Locked, Blocker | None]] = field(default_factory=list)
    noted: Sequence[int] = ()
    """Ids of the notes of those of its keys that are blocked."""


def make_plan(
    rows: Sequence[Locked],
    blockers: Mapping[str, Blocker],
    *,
    read: Callable[[Locked], Readable],
    parks_key: Callable[[str], bool],
) -> Plan:
    """Sort ``rows`` into what is handled, what dies and what waits.

    ``rows`` are live and in id order; ``read`` raises ``UnreadableError`` for a row that can never be handled;
    ``parks_key`` says whether the death of an event type holds back its key.
    """
    plan = Plan()
    parked: set[str] = set()
    for row in rows:
        blocker = blockers.get(row.message_key)
        if blocker is not None and blocker.id < row.id:
            plan.wait.append((row, blocker))
        elif row.message_key in parked:
            plan.wait.append((row, None))
        else:
            try:
                plan.deliver.append(read(row))
            except UnreadableError as error:
                parks = parks_key(row.event_type)
                plan.bury.append(Burial(row, error, parks))
                if parks:
                    parked.add(row.message_key)
    return plan


def group(deliveries: Sequence[Readable]) -> list[tuple[Handler, list[Delivery[Any]]]]:
    """Group deliveries by handler, keeping the order of each key across event types.

    A delivery joins an earlier group of its handler unless an event of its key stands in a later one.
    """
    groups: list[tuple[Handler, list[Delivery[Any]]]] = []
    last_of_handler: dict[int, int] = {}
    last_of_key: dict[str, int] = {}
    for readable in deliveries:
        key, handler = readable.delivery.message_key, readable.handler
        at = last_of_handler.get(id(handler))
        if at is None or at < last_of_key.get(key, 0):
            at = len(groups)
            groups.append((handler, []))
            last_of_handler[id(handler)] = at
        groups[at][1].append(readable.delivery)
        last_of_key[key] = at
    return groups


def waits_until(blocker: Blocker | None, *, now: datetime, shortest: timedelta, longest: timedelta) -> datetime:
    """Return when an event that waits for ``blocker`` is due again.

    A blocker in its back-off says itself when it comes; behind any other the pause grows with the time that nothing
    has happened to it, so that a parked key costs little and a short delay stays short.
    """
    if blocker is None:
        return now + shortest
    pause = min(max(blocker.unchanged_for, shortest), longest)
    if blocker.due_at is not None and blocker.due_at > now:
        return blocker.due_at
    return now + pause


def lost_before(waiting: Sequence[tuple[Locked, Blocker | None]], *, after: timedelta) -> list[int]:
    """Return the predecessors in ``waiting`` whose records are lost: sent for ``after``, and not come.

    The records of a key share a partition, so that of a predecessor has come before. One that was sent again meanwhile
    may lie behind; then it comes twice, which changes nothing.
    """
    return sorted({each.id for _, each in waiting if each is not None and each.is_sent and each.unchanged_for >= after})
