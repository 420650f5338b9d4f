"""The entry points of the time when one outbox served every service; thin, and on their way out.

They go through the same registry as everything else, so an event type that nobody registered is refused here too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import Delivery, handlers
from outbox.exceptions import InvalidEventError, PayloadError
from outbox.publishing import publish


def enqueue(event_type: str, message_key: str, payload: Mapping[str, Any] | str | bytes) -> str:
    """Publish ``payload`` (a mapping, or JSON) as an event under ``message_key``; return its event id.

    .. deprecated:: 0.1
        Publish the event's contract with ``outbox.publish``.

    :raises UnknownEventTypeError: nobody registered ``event_type``.
    :raises InvalidEventError: the payload does not keep the contract, or ``message_key`` is not the contract's key:
        the order of events hangs on it.
    """
    warnings.warn(
        "enqueue() is deprecated; use outbox.publish()",
        DeprecationWarning,
        stacklevel=2,
    )
    contract = contracts.get(event_type)
    try:
        event = contract.decode(_as_json(payload), version=contract.version)
    except (PayloadError, msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidEventError(event_type, field="payload", reason=str(error)) from error
    expected = contract.message_key(event)
    if message_key != expected:
        raise InvalidEventError(
            event_type, field="message_key", reason=f"it is {message_key!r}, the contract's key is {expected!r}"
        )
    return publish(event)


def register_handler(event_type: str, handler: Callable[[Delivery[Any]], None]) -> None:
    """Register ``handler`` for ``event_type``; it is called with one ``Delivery`` in the consumer's transaction.

    .. deprecated:: 0.1
        Decorate the handler with ``outbox.handles``.

    :raises UnknownEventTypeError: nobody registered ``event_type``.
    :raises ConfigurationError: the event type has another handler.
    """
    warnings.warn(
        "register_handler() is deprecated; use @outbox.handles(...)",
        DeprecationWarning,
        stacklevel=2,
    )
    contracts.get(event_type)
    handlers.add(event_type, handler)


def _as_json(payload: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(payload, bytes):
        return payload
    return payload.encode() if isinstance(payload, str) else msgspec.json.encode(payload)
