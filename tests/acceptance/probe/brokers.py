"""Kafka that stops at the two moments at which a crash hurts most, when a test says so.

``marks``: the relay has its acknowledgements and has not marked the rows. ``offsets``: the consumer has committed its
transaction and not its offsets. A worker that comes to such a point while the file ``hold-<point>`` is in the folder
writes ``held-<point>`` and stays there until the first file is gone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from outbox.brokers.base import IncomingRecord, OutgoingRecord, PendingSend, Producer, SendReport, Subscription
from outbox.brokers.kafka import KafkaBroker
from outbox.declarations.routes import ServiceRoute
from tests.waiting import wait_until

VARIABLE = "PROBE_HOLD_FOLDER"
_LONGEST_HOLD = timedelta(minutes=4)
"""Less than a test may take: what is never let go of says so."""


def hold(point: str) -> None:
    """Stay here while the test wants it."""
    folder = Path(os.environ[VARIABLE])

    def may_go_on() -> bool:
        if not (folder / f"hold-{point}").exists():
            return True
        (folder / f"held-{point}").touch()
        return False

    wait_until(may_go_on, timeout=_LONGEST_HOLD, interval=0.01, message=f"the test let go of {point!r}")


class HoldingKafkaBroker(KafkaBroker):
    """Use it by its dotted path as ``BROKER['BACKEND']``."""

    def producer(self, *, client_id: str) -> Any:
        return _Producer(super().producer(client_id=client_id))

    def subscribe(self, route: ServiceRoute, *, client_id: str) -> Any:
        return _Subscription(super().subscribe(route, client_id=client_id))


class _Producer:
    def __init__(self, inner: Producer) -> None:
        self._inner = inner

    def send(self, records: Sequence[OutgoingRecord]) -> PendingSend:
        return _Send(self._inner.send(records))

    def close(self) -> None:
        self._inner.close()


class _Send:
    def __init__(self, inner: PendingSend) -> None:
        self._inner = inner

    def report(self, timeout: timedelta) -> SendReport:
        report = self._inner.report(timeout)
        hold("marks")
        return report


class _Subscription:
    def __init__(self, inner: Subscription) -> None:
        self._inner = inner

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        return self._inner.receive(max_records=max_records, timeout=timeout)

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        hold("offsets")
        self._inner.commit(records)

    @property
    def assignments(self) -> Mapping[int, int]:
        return self._inner.assignments

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        self._inner.hand_back(records)

    def close(self) -> None:
        self._inner.close()
