"""SIGTERM: the batch in hand is finished, the process ends soon with exit code 0, and nothing is done twice."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.plans import Plan
from tests.acceptance.topics import group_members

EVERYWHERE = pytest.mark.parametrize(
    ("database", "broker"), [("mariadb", "kafka"), ("mysql", "kafka"), ("sqlite", "table")]
)


@EVERYWHERE
def test_consumer_finishes_its_batch_and_nothing_is_done_twice(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker, options={"CONSUMER": {"BATCH_SIZE": 30}})
    relay = installation.relay()
    installation.load(Plan(prefix="k", threads=2, transactions=60, events=3, seed=21, fields={"sleep_ms": 10}))
    for _ in range(2):
        consumer = installation.consumer()
        target = len(installation.begun()) + 10
        installation.wait(
            lambda target=target: len(installation.begun()) >= target,
            "the consumer was in its batch",
            interval_s=0.002,
            alive=[consumer],
        )
        consumer.stop()
        begun, done = installation.begun(), installation.effects()
        assert len(begun) == len(done), "it left a batch unfinished"
    consumer = installation.consumer()
    installation.wait_until_done(alive=[relay, consumer])
    installation.check()
    runs = Counter(mark.outbox_id for mark in installation.begun())
    assert set(runs.values()) == {1}, "a handler ran twice for an event"


def test_consumer_leaves_its_group_at_once(installation: Installation) -> None:
    """So the next one need not wait for the end of a session."""
    assert installation.kafka is not None
    installation.publish(("step", {"key": "k"}))
    installation.relay()
    consumer = installation.consumer()
    installation.wait_until_done(alive=[consumer])
    consumer.stop()
    assert group_members(installation.kafka, installation.group())["members"] == []


@EVERYWHERE
def test_relay_marks_what_it_sent(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker, options={"RELAY": {"BATCH_SIZE": 10}})
    installation.load(Plan(prefix="k", threads=4, transactions=100, events=3, seed=22))
    relay = installation.relay()
    installation.wait(
        lambda: installation.statuses()["published"] > 20,
        "the relay was in its work",
        interval_s=0.002,
        alive=[relay],
    )
    relay.stop()
    sent = installation.statuses()["published"]
    assert f"published {sent}," in relay.text
    assert installation.statuses()["pending"], "the stop came after the work was done"
    leases = installation.database.query("SELECT DISTINCT owner FROM outbox_shard_leases")
    assert [tuple(row) for row in leases] == [("",)], "it kept its leases"
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check()
    # Had a row been sent twice, its second record would have been a duplicate.
    workers[1].stop()
    assert "duplicates 0" in workers[1].text


def test_idle_workers_end_at_once(installation: Installation) -> None:
    workers = [installation.relay(), installation.consumer()]
    installation.publish(("step", {"key": "k"}))
    installation.wait_until_done(alive=workers)
    for worker in workers:
        assert worker.stop() < 10


def test_once_ends_by_itself_when_all_is_done(installation: Installation) -> None:
    installation.load(Plan(prefix="k", transactions=20, seed=23))
    installation.relay("probe", "--once").wait(timeout_s=30)
    assert installation.statuses().keys() == {"published"}
    installation.consumer("probe", "--once").wait(timeout_s=30)
    installation.check()
