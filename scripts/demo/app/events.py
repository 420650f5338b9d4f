"""The demo's event."""

from __future__ import annotations

from typing import Annotated

import msgspec

from outbox import event


@event("demo.step.taken", service="agent", key="conversation_id")
class StepTaken(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation went one step further. The first ``failures`` attempts to handle it fail."""

    conversation_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    step: Annotated[int, msgspec.Meta(gt=0)]
    failures: Annotated[int, msgspec.Meta(ge=0)] = 0
