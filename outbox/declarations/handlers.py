"""Handlers: what a service does with an event, and what it is given to do it. Pure.

A handler takes one ``Delivery``, or, with ``batch=True``, a list of them in the order of their ids. It runs inside the
transaction that marks its events consumed, and may run again after a rollback: effects other than on that database
belong elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar, overload

import msgspec

from outbox.declarations.contracts import ContractRegistry, contracts
from outbox.exceptions import ConfigurationError

P = TypeVar("P", bound=msgspec.Struct)
P_co = TypeVar("P_co", bound=msgspec.Struct, covariant=True)


class Delivery(msgspec.Struct, Generic[P_co], frozen=True):
    """An event as its handler sees it.

    ``outbox_id`` grows with the order of publication and never changes: compare it where the newest must win.
    ``attempt`` counts from 1. ``database`` is the alias that the open transaction is on. ``traceparent`` is that of the
    event, an empty text where it has none.
    """

    outbox_id: int
    event_id: str
    event_type: str
    event_version: str
    message_key: str
    aggregate_id: str
    payload: P_co
    attempt: int
    database: str
    traceparent: str = ""


DeliveryHandler = Callable[[Delivery[P]], None]
ListHandler = Callable[[list[Delivery[P]]], None]


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


@overload
def handles(
    payload_type: type[P],
    *,
    batch: Literal[False] = False,
    registry: HandlerRegistry = handlers,
    contract_registry: ContractRegistry = contracts,
) -> Callable[[DeliveryHandler[P]], DeliveryHandler[P]]: ...
@overload
def handles(
    payload_type: type[P],
    *,
    batch: Literal[True],
    registry: HandlerRegistry = handlers,
    contract_registry: ContractRegistry = contracts,
) -> Callable[[ListHandler[P]], ListHandler[P]]: ...
def handles(
    payload_type: type[P],
    *,
    batch: bool = False,
    registry: HandlerRegistry = handlers,
    contract_registry: ContractRegistry = contracts,
) -> Callable[[Any], Any]:
    """Declare the decorated function as the handler of the event whose contract is ``payload_type``.

    It takes a ``Delivery[P]`` of it, with ``batch`` a ``list[Delivery[P]]`` in the order of ids, and returns None;
    type checkers refuse another one. A function for two events is given to two calls, ``handles(P)(function)``:
    what comes back has the type of a handler of this event. The registries are the process's own, except in tests.

    :raises ConfigurationError: the class was not declared with ``@event``, the event has another handler, or the
        function is a coroutine or a generator, which a call does not run.
    """

    def declare(function: Callable[[Any], None]) -> Callable[[Any], None]:
        for contract in contract_registry:
            if contract.payload_type is payload_type:
                registry.add(contract.event_type, function, batch=batch)
                return function
        raise ConfigurationError(f"@handles({payload_type.__qualname__}): the class was not declared with @event")

    return declare
