"""The way of an event from the transaction that publishes it to its effect, on every database and broker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.plans import Plan

EVERYWHERE = pytest.mark.parametrize(
    ("database", "broker"),
    [
        ("mariadb", "kafka"),
        ("mysql", "kafka"),
        ("postgres", "kafka"),
        ("sqlite", "table"),
        ("mariadb", "table"),
        ("mysql", "table"),
    ],
    ids=lambda value: value,
)


def newest_snapshots(installation: Installation) -> dict[str, tuple[int, str]]:
    """Return, by conversation, the highest outbox id and the snapshot that its row carries."""
    rows = installation.database.query("SELECT id, payload FROM agent_outbox_messages ORDER BY id")
    newest: dict[str, tuple[int, str]] = {}
    for row_id, payload in rows:
        snapshot: dict[str, Any] = json.loads(payload)["payload"]
        newest[snapshot["conversation_id"]] = (row_id, snapshot["snapshot_json"])
    return newest


def kept_snapshots(installation: Installation) -> dict[str, tuple[int, str]]:
    """Return the snapshot records in the same form; two of one conversation would be an error."""
    rows = installation.database.query(
        "SELECT conversation_id, outbox_id, snapshot_json FROM agent_state_snapshot_records ORDER BY id"
    )
    kept = {conversation: (outbox_id, snapshot) for conversation, outbox_id, snapshot in rows}
    assert len(kept) == len(rows), "a conversation has two snapshot records"
    return kept


@EVERYWHERE
def test_every_committed_event_has_one_effect_in_order(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker)
    workers = [installation.relay(), installation.consumer()]
    installation.load(
        Plan(prefix="steps", transactions=30, seed=1),
        Plan(prefix="bulk", kind="bulk", transactions=30, events=5, seed=2),
    )
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        worker.stop()


@EVERYWHERE
def test_newest_snapshot_of_a_conversation_wins(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker)
    workers = [installation.relay("agent"), installation.consumer("agent")]
    installation.load(Plan(prefix="conversation", kind="snapshot", threads=3, transactions=30, seed=3))
    installation.wait_until_done(service="agent", alive=workers)
    newest = newest_snapshots(installation)
    assert len(newest) == 15
    assert kept_snapshots(installation) == newest
    assert installation.statuses("agent").keys() == {"consumed"}
    for worker in workers:
        worker.stop()


def test_rolled_back_transaction_emits_nothing(installation: Installation) -> None:
    publisher = installation.publisher()
    publisher.begin()
    publisher.publish(("step", {"key": "k", "n": 1}), ("snapshot", {"conversation_id": "c"}))
    publisher.rollback()
    publisher.publish(("step", {"key": "k", "n": 2}))
    relay, consumer = installation.relay(), installation.consumer()
    installation.wait_until_done(alive=[relay, consumer])
    installation.check()
    assert [effect.n for effect in installation.effects()] == [2]
    assert not installation.rows("agent")


def test_rows_that_are_committed_late_are_not_skipped(installation: Installation) -> None:
    """A transaction takes its ids and stays open while later ids are sent and consumed."""
    workers = [installation.relay(), installation.consumer()]
    slow, quick = installation.publisher(), installation.publisher()
    slow.begin()
    late = slow.publish(("step", {"key": "late", "n": 1}), ("step", {"key": "shared", "n": 1}))
    for n in range(2, 42):
        quick.publish(("step", {"key": "shared" if n % 2 else "other", "n": n}))
    installation.wait(lambda: len(installation.effects()) == 40, "the later events took effect", alive=workers)
    # Long enough for the relay's mark to have moved on, several sweeps included.
    began = installation.database.value(f"SELECT {installation.database.now}")
    installation.wait(
        lambda: (installation.database.value(f"SELECT {installation.database.now}") - began).total_seconds() > 3,
        "the transaction was open for 3 s",
    )
    slow.commit()
    installation.wait_until_done(alive=workers)
    installation.check(in_order=["late", "other"])
    assert {effect.event_id for effect in installation.effects()} >= set(late)


def test_row_of_plain_sql_is_relayed_and_consumed(installation: Installation) -> None:
    """The Go services insert rows with the shared columns only, some of them with NULL or 0 where they may."""
    payload = {"event_id": "from-go-1", "event_type": "probe.step", "event_version": "v1", "aggregate_id": "k"}
    complete = json.dumps({**payload, "payload": {"key": "k", "n": 1}})
    bare = json.dumps({"payload": {"key": "k", "n": 2}})
    insert = "INSERT INTO probe_outbox_messages"
    installation.database.execute(
        f"{insert} (event_type, service_name, topic, message_key, payload, status, retry_count, max_retry,"
        " next_retry_at, last_error, published_at, consumed_at, created_at, updated_at)"
        " VALUES ('probe.step', 'probe', %s, 'k', %s, 'pending', 0, 20, NULL, NULL, NULL, NULL,"
        " UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
        [installation.topic(), complete],
    )
    installation.database.execute(f"{insert} (event_type, message_key, payload) VALUES ('probe.step', 'k', %s)", [bare])
    rows = installation.rows()
    installation.journal.committed.update({"from-go-1", str(rows[1].id)})
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check()
    assert [effect.n for effect in installation.effects()] == [1, 2]


def test_status_says_what_the_rows_say(installation: Installation) -> None:
    event_ids = installation.publish(
        ("step", {"key": "k", "n": 1}),
        ("step", {"key": "k", "n": 2, "verdict": "discard"}),
        ("step", {"key": "k", "n": 3}),
    )
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check(dead=[event_ids[1]])
    shown = installation.wait(
        lambda: status if (status := _status(installation))["lag"] == 0 else None, "the offsets are committed"
    )
    counts = {name: count["value"] for name, count in shown["counts"].items()}
    assert counts == {"pending": 0, "published": 0, "consumed": 2, "dead": 1}
    assert [worker["pid"] for worker in (*shown["relays"], *shown["consumers"])] == [worker.pid for worker in workers]
    assert shown["attention"] == ["dead"]


def _status(installation: Installation) -> dict[str, Any]:
    """Return what ``outbox_status --json`` says of the probe service."""
    done = installation.run("outbox_status", "probe", "--json")
    assert done.returncode == 0, done.stderr
    (status,) = json.loads(done.stdout)["services"]
    return status
