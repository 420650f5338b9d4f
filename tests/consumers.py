"""What tests of the consumer share: events are published and delivered, and a subscription follows a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from outbox.brokers.base import IncomingRecord, Subscription
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from tests.factories import records_of, rows
from tests.waiting import wait_until


def published(alias: str, count: int, **columns: Any) -> list[int]:
    return rows(alias, count, status=Status.PUBLISHED, **columns)


def deliver(alias: str, consumer: Consumer, row_ids: Sequence[int]) -> None:
    consumer.handle(records_of(alias, row_ids))


def see_through(alias: str, consumer: Consumer, row_ids: Sequence[int]) -> None:
    """Deliver, and again what is locked: a server takes a moment to see that a handler closed its connection."""
    left = records_of(alias, row_ids)

    def is_settled() -> bool:
        left[:] = consumer.handle(left)
        return not left

    wait_until(is_settled, message="every row is released")


class Scripted:
    """A subscription that gives and raises what a test says."""

    def __init__(self, *script: list[IncomingRecord] | Exception, commit: list[Exception | None] | None = None) -> None:
        self.script = list(script)
        self.commits = commit or []
        self.committed: list[IncomingRecord] = []
        self.handed_back: list[IncomingRecord] = []
        self.assignments: Mapping[int, int] = {0: 1}
        self.closed = False

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        step = self.script.pop(0) if self.script else []
        if isinstance(step, Exception):
            raise step
        return step[:max_records]

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        error = self.commits.pop(0) if self.commits else None
        if error is not None:
            raise error
        self.committed += records

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        self.handed_back += records

    def close(self) -> None:
        self.closed = True


def subscribing(*subscriptions: Subscription) -> Callable[[], Subscription]:
    each = iter(subscriptions)
    return lambda: next(each)
