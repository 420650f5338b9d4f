"""Handlers: what a service does with an event, and what it is given to do it. Pure.

A handler takes one ``Delivery``, or, with ``batch=True``, a list of them in the order of their ids. It runs inside the
transaction that marks its events consumed, and may run again after a rollback: effects other than on that database
belong elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from outbox.declarations.contracts import ContractRegistry, contracts
from outbox.exceptions import ConfigurationError

P = TypeVar("P", bound=msgspec.Struct)
H = TypeVar("H", bound=Callable[..., None])


class Delivery(msgspec.Struct, Generic[P], frozen=True):
    """An event as its handler sees it.

    ``outbox_id`` grows with the order of publication and never changes: compare it where the newest must win.
    ``attempt`` counts from 1. ``database`` is the alias that the open transaction is on.
    """

    outbox_id: int
    event_id: str
    event_type: str
    event_version: str
    message_key: str
    aggregate_id: str
    payload: P
    attempt: int
    database: str
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Handler:
    """A function and whether it takes a list."""

    function: Callable[[Any], None]
    batch: bool


class HandlerRegistry:
    """The handler of each event type."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def __contains__(self, event_type: object) -> bool:
        return event_type in self._handlers

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def add(self, event_type: str, function: Callable[[Any], None], *, batch: bool = False) -> None:
        """Register the handler of ``event_type``; the same function again is harmless.

        :raises ConfigurationError: the event type has another handler, or calling this one would not run it.
        """
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigurationError(
                f"handler {function!r} of {event_type!r} is a coroutine or a generator, which a call does not run; "
                f"make it a plain function"
            )
        handler = Handler(function, batch)
        known = self._handlers.setdefault(event_type, handler)
        if known != handler:
            raise ConfigurationError(
                f"event type {event_type!r} has two handlers, {known.function!r} and {function!r}; keep one"
            )

    def remove(self, event_type: str) -> None:
        """Forget the handler of ``event_type``; harmless when there is none."""
        self._handlers.pop(event_type, None)

    def get(self, event_type: str) -> Handler | None:
        return self._handlers.get(event_type)


handlers: Final = HandlerRegistry()
"""The process's handlers: filled when the apps' ``handlers.py`` are imported."""


def handles(
    payload_type: type[msgspec.Struct],
    *,
    batch: bool = False,
    registry: HandlerRegistry = handlers,
    contract_registry: ContractRegistry = contracts,
) -> Callable[[H], H]:
    """Declare the decorated function as the handler of the event whose contract is ``payload_type``.

    :raises ConfigurationError: the class was not declared with ``@event``, or the event has another handler.
    """

    def declare(function: H) -> H:
        for contract in contract_registry:
            if contract.payload_type is payload_type:
                registry.add(contract.event_type, function, batch=batch)
                return function
        raise ConfigurationError(f"@handles({payload_type.__qualname__}): the class was not declared with @event")

    return declare
