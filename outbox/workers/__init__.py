"""Running workers: relays and consumers on threads and in one tree; and what a worker of one's own stands on."""

from __future__ import annotations

from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.coordination.shutdown import StopFlag, stop_on_signals

__all__ = ["ConnectionBackoff", "ErrorKind", "StopFlag", "kind_of", "stop_on_signals"]
