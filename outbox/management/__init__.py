"""Management commands; and what a command of one's own is made of."""

from __future__ import annotations

from outbox.management.command import OutboxCommand
from outbox.management.reporting import duration, explain_errors, positive

__all__ = ["OutboxCommand", "duration", "explain_errors", "positive"]
