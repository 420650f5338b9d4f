"""A service-level transactional outbox for Django.

The public names; everything else is reached through its module. Importing this package touches neither the database
nor the settings, so ``events.py`` and ``handlers.py`` may import it while Django starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outbox.declarations.backoff import RetryPolicy
from outbox.declarations.contracts import OnDead, event, upcasts
from outbox.declarations.handlers import Delivery, handles
from outbox.exceptions import Discard, FieldError, Retry

if TYPE_CHECKING:
    from outbox.publishing import publish, publish_many

__all__ = [
    "Delivery",
    "Discard",
    "FieldError",
    "OnDead",
    "Retry",
    "RetryPolicy",
    "event",
    "handles",
    "publish",
    "publish_many",
    "upcasts",
]


def __getattr__(name: str) -> Any:
    """Import the publishing side on first use: it needs Django's app registry, which is not ready at import."""
    if name in {"publish", "publish_many"}:
        from outbox import publishing  # noqa: PLC0415

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
