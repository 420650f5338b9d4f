"""The event of the `shared` service."""

from __future__ import annotations

import msgspec

from outbox import event


@event("shared.step", service="shared", key="key")
class SharedStep(msgspec.Struct, frozen=True, kw_only=True):
    """Handled by whichever program consumes."""

    key: str
    n: int
    filler: str = ""
