"""A service under everything at once, by chance and with a seed; the promises are checked row by row.

Two relays and two consumers work by turns while events are published, rolled back and committed late, handlers fail,
records come twice, get lost or are garbage, workers crash at bad moments, the broker goes away, and a person replays,
edits and gives up. In the end: every event is consumed or dead with a reason (promise 1), has one effect or none
(promise 2), and no effect came before that of an unfinished predecessor of its key (promise 3). On the way, nothing
but an error of its own cost an event an attempt (promise 4).
"""

from __future__ import annotations

import os
import random

import pytest

from agent_events.agent.models import AgentOutboxMessage
from outbox.models import RejectedRecord
from tests.integration.world import GARBAGE, TOPIC, World
from tests.toys import ToyEffect

STEPS = 120

WORLDS = int(os.environ.get("OUTBOX_TEST_WORLDS", "16"))
"""How many to try on SQLite, and a quarter of it on each other database; set it high for a night's run."""

LONG_WORLDS = 60
"""How many more `make test-long` tries on each database."""

SEEDS = [
    *(("default", seed) for seed in range(WORLDS)),
    *((alias, seed) for alias in ("mariadb", "mysql", "postgres") for seed in range(10_000, 10_000 + WORLDS // 4)),
    *(
        pytest.param(alias, seed, marks=pytest.mark.long)
        for alias in ("default", "mariadb", "mysql", "postgres")
        for seed in range(20_000, 20_000 + LONG_WORLDS)
    ),
]


@pytest.mark.parametrize(("database_alias", "seed"), SEEDS, indirect=["database_alias"])
def test_every_event_ends_once_and_in_the_order_of_its_key(alias: str, seed: int) -> None:
    world = World(alias, random.Random(seed))

    for _ in range(STEPS):
        world.do_something()
    world.bring_to_an_end()

    check_every_event_is_consumed_or_dead_with_a_reason(world)
    check_every_event_has_one_effect_or_none(world)
    check_nothing_but_its_own_errors_cost_an_attempt(world)
    check_garbage_is_kept(world)


def check_every_event_is_consumed_or_dead_with_a_reason(world: World) -> None:
    found = list(AgentOutboxMessage.objects.using(world.alias))
    assert {row.id for row in found} == set(world.events), "what was rolled back is not there, what committed is"
    for row in found:
        event = world.events[row.id]
        assert row.status == ("dead" if event.dies else "consumed"), (event, row.last_error)
        if event.dies:
            reasons = {
                "discard": "Discard: never",
                "attempts": "ValueError: no",
                "unreadable": "UnknownVersionError",
                "refused": "too large",
            }
            assert reasons[event.dies] in row.last_error
            assert row.dead_at is not None


def check_every_event_has_one_effect_or_none(world: World) -> None:
    made = sorted(ToyEffect.objects.using(world.alias).values_list("outbox_id", flat=True))
    assert made == sorted(event.id for event in world.events.values() if not event.dies)


def check_nothing_but_its_own_errors_cost_an_attempt(world: World) -> None:
    for row in AgentOutboxMessage.objects.using(world.alias):
        event = world.events[row.id]
        cost = {"discard": 1, "attempts": 2, "unreadable": 0, "refused": 0, "": event.failures}[event.dies]
        assert row.retry_count == cost, (event, row.last_error)


def check_garbage_is_kept(world: World) -> None:
    garbage = {(record.partition, record.offset) for record in world.broker.records(TOPIC) if record.value in GARBAGE}
    kept = list(RejectedRecord.objects.using(world.alias).values_list("partition", "offset"))
    assert len(kept) == len(set(kept))
    assert garbage - world.stolen <= set(kept) <= garbage
