"""Publishes single events for the faults of handlers, from a process that an outage may end."""

from __future__ import annotations

import threading
from typing import Any

from tests.acceptance.harness import Installation
from tests.acceptance.workers import Publisher
from tests.chaos.errors import MissedError


class EventPublisher:
    """A process that publishes, made anew when it has ended. Safe to share between threads."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._process: Publisher | None = None
        self._lock = threading.Lock()

    def publish(self, *events: tuple[str, dict[str, Any]]) -> list[str]:
        """Publish events (kind, fields) in one transaction; return their event ids.

        :raises MissedError: nobody knows whether they were published; their business rows tell.
        """
        with self._lock:
            if self._process is None or not self._process.is_alive:
                self._process = self._installation.publisher()
            try:
                return self._process.publish(*events)
            except (AssertionError, OSError) as error:
                self._process.dispose()
                raise MissedError(f"nothing was published: {str(error).splitlines()[0]}") from error
