"""Calls the handlers of a batch, and finds those events in it that they fail by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outbox.exceptions import HandlerExitError
from outbox.handlers import Delivery, Handler
from outbox.planning import Readable, group
from outbox.tracing import traceparent


def call_handlers(readables: Sequence[Readable]) -> None:
    """Call each handler with what is for it, in an order that keeps that of every key.

    :raises Exception: what a handler raised; what would end the process, such as ``SystemExit``, as
        ``HandlerExitError``.
    """
    for handler, deliveries in group(readables):
        try:
            _call(handler, deliveries)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise HandlerExitError(error) from error


def _call(handler: Handler, deliveries: list[Delivery[Any]]) -> None:
    if handler.batch:
        with traceparent(deliveries[0].traceparent if len(deliveries) == 1 else ""):
            handler.function(deliveries)
    else:
        for delivery in deliveries:
            with traceparent(delivery.traceparent):
                handler.function(delivery)


@dataclass(slots=True)
class Sifted:
    """Every event of a batch is in exactly one of the three."""

    good: list[Readable] = field(default_factory=list)
    guilty: list[Readable] = field(default_factory=list)
    """Those that fail even alone: at most one of each key."""
    behind: list[Readable] = field(default_factory=list)
    """Those of their keys that come after them: what becomes of them depends on what becomes of the guilty one."""

    def is_behind(self, key: str, row_id: int) -> bool:
        """Say whether an event comes after a guilty one of its key."""
        return any(each.delivery.message_key == key and each.delivery.outbox_id < row_id for each in self.guilty)


def sift(readables: Sequence[Readable], bears: Callable[[Sequence[Readable]], bool]) -> Sifted:
    """Part the events of a batch that is known to fail, in halves, until those that it fails by stand alone.

    ``readables`` are in id order. ``bears`` handles some of them, or undoes what it did and returns False. One guilty
    event among n costs about 2 log2(n) calls, each of half as many events as the one before.
    """
    sifted = Sifted()
    stopped: set[str] = set()
    parts = _halves(readables) if len(readables) > 1 else [list(readables)]
    while parts:
        part = parts.pop()
        sifted.behind += [each for each in part if each.delivery.message_key in stopped]
        part = [each for each in part if each.delivery.message_key not in stopped]
        if not part or bears(part):
            sifted.good += part
        elif len(part) == 1:
            sifted.guilty += part
            stopped.add(part[0].delivery.message_key)
        else:
            parts += _halves(part)
    return sifted


def _halves(readables: Sequence[Readable]) -> list[list[Readable]]:
    """Return the second half and the first: the one to be done next is last."""
    middle = len(readables) // 2
    return [list(readables[middle:]), list(readables[:middle])]
