"""Running workers: relays and consumers on threads and in one tree; and what a worker of one's own stands on."""

from __future__ import annotations

from outbox.coordination.connection_backoff import ConnectionBackoff, is_fault
from outbox.coordination.shutdown import StopFlag, stop_on_signals
from outbox.coordination.worker_loop import WorkerLoop

__all__ = ["ConnectionBackoff", "StopFlag", "WorkerLoop", "is_fault", "stop_on_signals"]
