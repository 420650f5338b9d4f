"""Which broker carries the events. Importing this imports no client library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from django.utils.module_loading import import_string

from outbox.brokers.base import Broker
from outbox.exceptions import ConfigurationError

BACKENDS: Final[Mapping[str, str]] = {
    "kafka": "outbox.brokers.kafka.broker.KafkaBroker",
    "table": "outbox.brokers.table.TableBroker",
    "memory": "outbox.brokers.memory.MemoryBroker",
}
"""Short names of the backends that come with the library."""


def load_backend(name: str) -> type[Broker]:
    """Return the broker class that ``name`` means: a short name, or the dotted path of a ``Broker``.

    :raises ConfigurationError: there is no such class, its client library is missing, or it is no ``Broker``.
    """
    path = BACKENDS.get(name, name)
    known = ", ".join(BACKENDS)
    try:
        backend = import_string(path)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"broker backend {name!r} cannot be imported: {error}. "
            f"Known backends: {known}; or give the dotted path of a Broker class."
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Broker)):
        raise ConfigurationError(
            f"broker backend {name!r} is not a subclass of {Broker.__module__}.{Broker.__qualname__}. "
            f"Known backends: {known}; or give the dotted path of a Broker class."
        )
    return backend
