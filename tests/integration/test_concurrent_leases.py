"""Workers that come, go and sleep share the shards: nobody works on one that another holds, and none is left alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from outbox.fields import SHARD_COUNT
from tests import factories
from tests.threads import together

pytestmark = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)

HOUR = timedelta(hours=1)
DEADLINE_S = 150


@dataclass
class Floor:
    """Where workers are seen at work: two of them on one shard collide."""

    at_work: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def working(self, worker: str, shards: frozenset[int]) -> Iterator[None]:
        with self.lock:
            taken = {shard: self.at_work[shard] for shard in shards if shard in self.at_work}
            assert not taken, f"{worker} holds shards that others work on: {taken}"
            self.at_work.update(dict.fromkeys(shards, worker))
        try:
            yield
        finally:
            with self.lock:
                for shard in shards:
                    del self.at_work[shard]


def test_no_shard_is_worked_on_by_two_and_no_row_is_claimed_twice(alias: str) -> None:
    """Workers come, go and sleep through their leases while they share a backlog."""
    ids = factories.rows(alias, 240, key=lambda number: f"key-{number % 60}")
    repository = factories.repository()
    floor = Floor()
    workers = [factories.leases(alias, time.monotonic) for _ in range(5)]
    deadline = time.monotonic() + DEADLINE_S

    def work(number: int) -> list[int]:
        chance, leases = random.Random(number), workers[number]
        mine: list[int] = []
        while repository.claim(shards=None, limit=1, max_length=0).rows:
            assert time.monotonic() < deadline, "the backlog never ends"
            held = leases.refresh()
            with floor.working(leases.presence.worker_id, held):
                for _ in range(chance.randint(1, 3)):
                    claim = repository.claim(shards=held, limit=4, max_length=0)
                    claimed = [row.id for row in claim.rows]
                    if claimed:
                        marked = repository.mark_published(claimed, claimed_at=claim.claimed_at, redeliver_after=HOUR)
                        assert (marked.count, marked.held) == (len(claimed), [])
                        mine += claimed
            if chance.random() < 0.15:
                leases.release()
            elif chance.random() < 0.15:
                factories.expire(alias, leases.presence.worker_id)
        return mine

    shares = together(work, range(len(workers)))

    assert sorted(row_id for share in shares for row_id in share) == ids
    for _ in range(3):  # whoever is alive gives back and takes
        held = [leases.refresh() for leases in workers]
    assert sorted(shard for share in held for shard in share) == list(range(SHARD_COUNT))
    assert max(map(len, held)) - min(map(len, held)) <= 1
