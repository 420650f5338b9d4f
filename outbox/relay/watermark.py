"""Up to which moment everything published has been in the consumers' hands. Pure.

A row still ``published`` from before that moment is stuck: its record is lost, or was taken and not finished. Without
the horizon, a consumer that is down for a night would have its whole backlog sent again every few minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from outbox.brokers.base import Positions


class DeliveryHorizon:
    """Compares what a group has committed with where the topic ended at an earlier moment."""

    def __init__(self) -> None:
        self._reached: datetime | None = None
        self._asked: tuple[datetime, Mapping[int, int]] | None = None

    def update(self, now: datetime, positions: Positions) -> datetime | None:
        """Take in the positions as of ``now``; return the horizon, None as long as nothing is known."""
        if positions.lag == 0:
            self._reached, self._asked = now, None
        elif self._asked is None:
            self._asked = (now, positions.end)
        elif positions.passed(self._asked[1]):
            self._reached, self._asked = self._asked[0], (now, positions.end)
        return self._reached
