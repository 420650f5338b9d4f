"""What the tests of isolation share: a restarter of consumers, and looks at what poison events cost others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from tests.acceptance.harness import DONE_TIMEOUT_S, Installation
from tests.acceptance.workers import JSON, Worker

SHORT_LEASES: JSON = {"TTL_SECONDS": 1.0, "HEARTBEAT_SECONDS": 0.3}
SHORT_BACK_OFF: JSON = {"probe.misbehaving": {"BASE_SECONDS": 0.2, "CAP_SECONDS": 0.5}}
MOST_ENDS = 12
"""So many ends of a restarted process are a failure of the test, whatever it waits for."""


class Restarter:
    """Starts a worker again whenever it has ended, as systemd or Kubernetes do; it looks while the test waits."""

    def __init__(self, installation: Installation, start: Callable[[], Worker]) -> None:
        self.exit_codes: list[int] = []
        self.worker = start()
        self._installation = installation
        self._start = start

    def wait(
        self,
        condition: Callable[[], Any],
        message: str,
        *,
        timeout_s: float = DONE_TIMEOUT_S,
        alive: Collection[Worker] = (),
    ) -> None:
        """Wait for ``condition``, keeping the worker alive."""

        def look() -> Any:
            code = self.worker.exit_code
            if code is not None:
                self.exit_codes.append(code)
                assert len(self.exit_codes) < MOST_ENDS, f"it ended too often: {self.exit_codes}\n{self.worker.text}"
                self.worker = self._start()
            return condition()

        self._installation.wait(look, message, timeout_s=timeout_s, alive=alive)


def interruptions(installation: Installation, service: str = "probe") -> dict[int, int]:
    """Return the rows of a service that were interrupted, and how often in a row."""
    sql = f"SELECT id, interruptions FROM {service}_outbox_messages WHERE interruptions <> 0"
    return dict(installation.database.query(sql))


def are_consumed(installation: Installation, event_ids: Collection[str]) -> bool:
    """Say whether all of ``event_ids`` are."""
    return {row.status for row in installation.rows() if row.event_id in event_ids} == {"consumed"}


def ids_of(installation: Installation, event_ids: Collection[str]) -> set[int]:
    """Return the ids of the rows of ``event_ids``."""
    return {row.id for row in installation.rows() if row.event_id in event_ids}


def business_row_of(installation: Installation, event_id: str) -> int:
    """Return the id of the business row that was written with an event."""
    return int(installation.database.value("SELECT id FROM probe_business_rows WHERE event_id = %s", [event_id]))


def longest_delay_s(installation: Installation, *, besides: Collection[int], since: Any = None) -> float:
    """Return the longest time from the creation of a consumed event, or ``since``, to its end, in seconds.

    ``besides`` are the ids of rows that may take longer. Times are the database's.
    """
    rows = installation.database.query(
        "SELECT id, created_at, consumed_at FROM probe_outbox_messages WHERE consumed_at IS NOT NULL"
    )
    delays = [
        (consumed_at - (created_at if since is None else max(created_at, since))).total_seconds()
        for row_id, created_at, consumed_at in rows
        if row_id not in besides and (since is None or consumed_at > since)
    ]
    assert delays, "no event was consumed"
    return float(max(delays))
