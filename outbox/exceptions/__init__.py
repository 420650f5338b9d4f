"""Every error that the outbox raises, as one tree: catch the branch that you mean.

The class docstring says what happened; the message of an instance names the field, the value and the remedy::

    Exception
    ├── OutboxError
    │   ├── ConfigurationError
    │   ├── RoutingError
    │   │   ├── UnknownServiceError
    │   │   ├── UnknownEventTypeError
    │   │   └── EventOwnerConflictError
    │   ├── PublishError
    │   │   ├── InvalidEventError
    │   │   ├── PayloadTooLargeError
    │   │   └── WrongDatabaseError
    │   ├── FieldError (and ValueError)
    │   ├── UnreadableError
    │   │   ├── EnvelopeError
    │   │   ├── PayloadError
    │   │   ├── UnknownVersionError
    │   │   ├── NoHandlerError
    │   │   └── TooManyInterruptionsError
    │   ├── BrokerError
    │   │   ├── BrokerUnavailableError
    │   │   ├── TopicNotReadyError
    │   │   └── LostSubscriptionError
    │   ├── LostRowError
    │   ├── DrainError (and AssertionError)
    │   ├── HandlerError
    │   │   ├── HandlerExitError
    │   │   ├── ClosedConnectionError
    │   │   ├── UndoneEffectsError
    │   │   ├── TransactionEndedError
    │   │   ├── UnfinishedCallError
    │   │   └── HandlerTimeoutError
    │   └── InterruptionError
    │       ├── ConnectionLostError
    │       └── SilentDatabaseError
    ├── Retry
    ├── Discard
    └── FailedDeliveries

``Retry``, ``Discard`` and ``FailedDeliveries`` are instructions that a handler raises, no errors: no
``except OutboxError`` swallows them. An exception that is not in the tree is private: no public function raises it.
"""

from __future__ import annotations

from outbox.exceptions.base import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    DrainError,
    EnvelopeError,
    EventOwnerConflictError,
    FieldError,
    InvalidEventError,
    LostRowError,
    LostSubscriptionError,
    NoHandlerError,
    OutboxError,
    PayloadError,
    PayloadTooLargeError,
    PublishError,
    RoutingError,
    TopicNotReadyError,
    UnknownEventTypeError,
    UnknownServiceError,
    UnknownVersionError,
    UnreadableError,
    WrongDatabaseError,
)
from outbox.exceptions.handling import (
    ClosedConnectionError,
    ConnectionLostError,
    Discard,
    FailedDeliveries,
    HandlerError,
    HandlerExitError,
    HandlerTimeoutError,
    InterruptionError,
    Retry,
    SilentDatabaseError,
    TooManyInterruptionsError,
    TransactionEndedError,
    UndoneEffectsError,
    UnfinishedCallError,
)

__all__ = [
    "BrokerError",
    "BrokerUnavailableError",
    "ClosedConnectionError",
    "ConfigurationError",
    "ConnectionLostError",
    "Discard",
    "DrainError",
    "EnvelopeError",
    "EventOwnerConflictError",
    "FailedDeliveries",
    "FieldError",
    "HandlerError",
    "HandlerExitError",
    "HandlerTimeoutError",
    "InterruptionError",
    "InvalidEventError",
    "LostRowError",
    "LostSubscriptionError",
    "NoHandlerError",
    "OutboxError",
    "PayloadError",
    "PayloadTooLargeError",
    "PublishError",
    "Retry",
    "RoutingError",
    "SilentDatabaseError",
    "TooManyInterruptionsError",
    "TopicNotReadyError",
    "TransactionEndedError",
    "UndoneEffectsError",
    "UnfinishedCallError",
    "UnknownEventTypeError",
    "UnknownServiceError",
    "UnknownVersionError",
    "UnreadableError",
    "WrongDatabaseError",
]

# A traceback, which may stand on a row for months, names what can be imported and caught.
for _name in __all__:
    globals()[_name].__module__ = __name__
