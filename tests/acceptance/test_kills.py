"""``kill -9`` of relays, consumers and publishers at the moments at which it hurts, and at random ones."""

from __future__ import annotations

import random

import pytest

from tests.acceptance.conftest import ON_EACH_MYSQL, Install
from tests.acceptance.harness import HOLDING_KAFKA, Installation
from tests.acceptance.plans import Plan

SMALL_BATCHES = {
    "RELAY": {"BATCH_SIZE": 20},
    "CONSUMER": {"BATCH_SIZE": 40},
    "LEASES": {"TTL_SECONDS": 1.0, "HEARTBEAT_SECONDS": 0.3},
}


@pytest.mark.parametrize(
    ("database", "broker", "kills"),
    [("mariadb", "kafka", 5), ("mysql", "kafka", 2), ("postgres", "kafka", 1), ("sqlite", "table", 3)],
)
def test_relays_killed_at_random_moments_lose_and_repeat_nothing(
    install: Install, database: str, broker: str, kills: int
) -> None:
    installation = install(database=database, broker=broker, options=SMALL_BATCHES)
    dice = random.Random(f"relays-{database}")
    consumer = installation.consumer()
    installation.load(Plan(prefix="k", threads=4, transactions=150, events=3, seed=11))
    total = len(installation.rows())
    for kill in range(kills):
        relay = installation.relay()
        left = dice.randint(total * (kills - kill - 1) // kills + 1, total * (kills - kill) // kills - 1)
        installation.wait(
            lambda left=left: installation.statuses()["pending"] <= left,
            f"the relay left {left} events",
            interval_s=0.002,
            alive=[relay, consumer],
        )
        relay.kill9()
        assert installation.statuses()["pending"], "the kill came after the work was done"
    relay = installation.relay()
    installation.wait_until_done(alive=[relay, consumer])
    installation.check()
    relay.stop()
    consumer.stop()


@pytest.mark.parametrize(
    ("database", "broker", "kind", "kills"),
    [
        ("mariadb", "kafka", "step", 2),
        ("mariadb", "kafka", "bulk", 2),
        ("mysql", "kafka", "step", 2),
        ("postgres", "kafka", "step", 1),
        ("sqlite", "table", "step", 3),
    ],
)
def test_consumers_killed_in_mid_batch_lose_and_repeat_nothing(
    install: Install, database: str, broker: str, kind: str, kills: int
) -> None:
    """Each event takes 5 ms, so that a kill hits a handler; the trace proves that it did."""
    installation = install(database=database, broker=broker, options=SMALL_BATCHES)
    dice = random.Random(f"consumers-{database}-{kind}")
    relay = installation.relay()
    fields = {"sleep_ms": 5}
    installation.load(Plan(prefix="k", kind=kind, threads=4, transactions=50, events=5, seed=12, fields=fields))
    for _ in range(kills):
        consumer = installation.consumer()
        target = len(installation.begun()) + dice.randint(45, 75)
        installation.wait(
            lambda target=target: len(installation.begun()) >= target,
            "the consumer was in its work",
            interval_s=0.002,
            alive=[relay, consumer],
        )
        consumer.kill9()
        done = {effect.outbox_id for effect in installation.effects()}
        undone = [mark for mark in installation.begun() if mark.pid == consumer.pid and mark.outbox_id not in done]
        assert undone, "the kill did not hit a batch"
    consumer = installation.consumer()
    installation.wait_until_done(alive=[relay, consumer])
    installation.check()
    relay.stop()
    consumer.stop()


@ON_EACH_MYSQL
def test_relay_killed_between_acknowledgement_and_mark_repeats_no_effect(install: Install) -> None:
    """All records are on the topic, no row knows it: the next relay sends them again."""
    installation = install(backend=HOLDING_KAFKA, options=SMALL_BATCHES)
    installation.load(Plan(prefix="k", transactions=30, seed=13))
    installation.hold("marks")
    relay = installation.relay()
    installation.wait_held("marks")
    assert installation.statuses().keys() == {"pending"}
    relay.kill9()
    installation.release("marks")
    workers = [installation.consumer()]
    installation.wait(lambda: installation.statuses()["consumed"] > 0, "a record whose row is pending is consumed")
    workers.append(installation.relay())
    installation.wait_until_done(alive=workers)
    installation.check()


@ON_EACH_MYSQL
def test_consumer_killed_between_commit_and_offset_repeats_no_effect(install: Install) -> None:
    """The effects are in the database, the group's offsets are not moved: the next consumer gets the records again."""
    installation = install(backend=HOLDING_KAFKA, options=SMALL_BATCHES)
    installation.load(Plan(prefix="k", transactions=30, seed=14))
    installation.hold("offsets")
    workers = [installation.relay()]
    consumer = installation.consumer()
    installation.wait_held("offsets")
    done = len(installation.effects())
    assert done
    consumer.kill9()
    installation.release("offsets")
    second = installation.consumer()
    installation.wait_until_done(alive=[*workers, second])
    installation.check()
    assert len(installation.begun()) == len(installation.effects()), "a handler ran again for an event that was done"
    second.stop()
    assert "duplicates 0" not in second.text


@ON_EACH_MYSQL
def test_publishers_killed_leave_whole_transactions(installation: Installation) -> None:
    workers = [installation.relay(), installation.consumer()]
    for kill in range(3):
        load = installation.start_load(Plan(prefix=f"p{kill}", transactions=0, events=4, seed=15 + kill))
        before = len(installation.rows())
        installation.wait(lambda before=before: len(installation.rows()) > before + 50, "the load was under way")
        load.kill9()
    installation.wait_until_done(alive=workers)
    rows = {row.event_id for row in installation.rows()}
    # What was committed and not written down before the kill is in the business table.
    business = {row[0] for row in installation.database.query("SELECT event_id FROM probe_business_rows")}
    assert rows == business
    installation.journal.unknown.update(business)
    installation.check()


@ON_EACH_MYSQL
def test_everything_killed_again_and_again(installation_with_small_batches: Installation) -> None:
    """Two of each under load, one of the four killed and replaced at a time."""
    installation = installation_with_small_batches
    dice = random.Random(16)
    start = [installation.relay, installation.consumer, installation.relay, installation.consumer]
    workers = [begin() for begin in start]
    load = installation.start_load(Plan(prefix="k", transactions=0, pause_ms=20, seed=16, fields={"sleep_ms": 2}))
    for _ in range(5):
        done = installation.statuses()["consumed"]
        target = done + dice.randint(50, 150)
        installation.wait(
            lambda target=target: installation.statuses()["consumed"] >= target,
            "work goes on after a kill",
            interval_s=0.01,
            alive=[load],
        )
        victim = dice.randrange(len(workers))
        workers[victim].kill9()
        workers[victim] = start[victim]()
    load.stop()
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        worker.stop()


@pytest.fixture
def installation_with_small_batches(install: Install) -> Installation:
    return install(options=SMALL_BATCHES)
