"""What fails: retried in order, parked where it is wanted, dead with a reason, and no trouble to the others."""

from __future__ import annotations

import random

import pytest

from tests.acceptance.conftest import ON_EACH_MYSQL, Install
from tests.acceptance.harness import Installation
from tests.acceptance.topics import create_topic

pytestmark = ON_EACH_MYSQL


@pytest.mark.parametrize("kind", ["step", "bulk"])
def test_retried_event_goes_before_its_successors_and_holds_up_no_other_key(install: Install, kind: str) -> None:
    installation = install(options={"RETRY_BASE_SECONDS": 1.0})
    workers = [installation.relay(), installation.consumer()]
    failing, *others = installation.publish(
        (kind, {"key": "slow", "n": 1, "fail_times": 2}),
        (kind, {"key": "slow", "n": 2}),
        (kind, {"key": "quick", "n": 3}),
        (kind, {"key": "slow", "n": 4}),
        (kind, {"key": "quick", "n": 5}),
    )
    installation.wait(
        lambda: [effect.n for effect in installation.effects() if effect.key == "quick"] == [3, 5],
        "the other key went on",
        alive=workers,
    )
    assert not [effect for effect in installation.effects() if effect.key == "slow"]
    installation.wait_until_done(alive=workers)
    installation.check(retried=[failing])
    assert [(effect.n, effect.attempt) for effect in installation.effects()] == [
        (3, 1), (5, 1), (1, 3), (2, 1), (4, 1)
    ]  # fmt: skip
    assert installation.row(failing).retry_count == 2
    assert {installation.row(event_id).retry_count for event_id in others} == {0}


def test_handler_asks_for_a_retry_itself(installation: Installation) -> None:
    workers = [installation.relay(), installation.consumer()]
    asking, _ = installation.publish(("step", {"key": "k", "n": 1, "verdict": "retry"}), ("step", {"key": "k", "n": 2}))
    installation.wait_until_done(alive=workers)
    installation.check(retried=[asking])
    assert [(effect.n, effect.attempt) for effect in installation.effects()] == [(1, 2), (2, 1)]


@pytest.mark.parametrize("kind", ["step", "bulk"])
def test_poison_dies_with_its_reason_and_the_rest_of_the_batch_goes_through(install: Install, kind: str) -> None:
    options = {"EVENTS": {f"probe.{kind}": {"MAX_ATTEMPTS": 3, "BASE_SECONDS": 0.1}}}
    installation = install(options=options)
    event_ids = installation.publish(
        (kind, {"key": "bad", "n": 1}),
        (kind, {"key": "bad", "n": 2, "verdict": "poison"}),
        (kind, {"key": "bad", "n": 3}),
        (kind, {"key": "worse", "n": 4, "verdict": "discard"}),
        (kind, {"key": "worse", "n": 5}),
        *[(kind, {"key": f"good-{n}", "n": n}) for n in range(6, 30)],
    )
    poison, discarded = event_ids[1], event_ids[3]
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check(dead=[poison, discarded])
    assert installation.row(poison).last_error == "RuntimeError: it never works"
    assert installation.row(poison).retry_count == 3
    assert installation.row(discarded).last_error == "Discard: nobody wants it"
    assert installation.row(discarded).retry_count == 1


def test_unreadable_rows_die_at_once_with_their_reason(installation: Installation) -> None:
    """What plain SQL can put into the table: no JSON, a wrong payload, an unknown type, an unknown version."""
    rows = {
        "probe.step": ("no JSON", "EnvelopeError"),
        "probe.unknown": ('{"payload": {"key": "k"}}', "UnreadableError"),
        "probe.bulk": ('{"payload": {"key": 7}}', "PayloadError"),
        "probe.parking": ('{"event_version": "v9", "payload": {"key": "k"}}', "UnknownVersionError"),
    }
    installation.publish(("step", {"key": "k", "n": 1}))
    for event_type, (payload, _) in rows.items():
        installation.database.execute(
            "INSERT INTO probe_outbox_messages (event_type, message_key, payload) VALUES (%s, %s, %s)",
            [event_type, f"key of {event_type}", payload],
        )
    installation.publish(("step", {"key": "k", "n": 2}))
    workers = [installation.relay(), installation.consumer()]
    found = installation.database
    sql = "SELECT event_type, last_error, retry_count FROM probe_outbox_messages WHERE status = 'dead'"
    installation.wait(lambda: len(found.query(sql)) == len(rows), "the unreadable rows died", alive=workers)
    for event_type, reason, retry_count in found.query(sql):
        assert reason.startswith(rows[event_type][1]), reason
        assert retry_count == 0
    installation.wait(lambda: [effect.n for effect in installation.effects()] == [1, 2], "the others took effect")


def test_parked_key_waits_for_a_person(installation: Installation) -> None:
    dead, first, second, other = installation.publish(
        ("parking", {"key": "parked", "n": 1, "verdict": "discard"}),
        ("parking", {"key": "parked", "n": 2}),
        ("step", {"key": "parked", "n": 3}),
        ("parking", {"key": "other", "n": 4}),
    )
    workers = [installation.relay(), installation.consumer()]
    installation.wait(
        lambda: installation.row(dead).status == "dead" and installation.row(other).status == "consumed",
        "the event died, and the other key went on",
        alive=workers,
    )
    # Its successors come and are put back again and again, at no cost to them.
    waited = [installation.row(event_id) for event_id in (first, second)]
    assert {row.status for row in waited} <= {"pending", "published"}
    assert [effect.n for effect in installation.effects()] == [4]
    assert installation.publisher().give_up(installation.row(dead).id) == 1
    installation.wait_until_done(alive=workers)
    installation.check(dead=[dead])
    assert [effect.n for effect in installation.effects()] == [4, 2, 3]


def test_replayed_event_of_a_parked_key_goes_before_its_successors(installation: Installation) -> None:
    publisher = installation.publisher()
    dead, *_ = publisher.publish(
        ("parking", {"key": "k", "n": 1, "verdict": "discard"}),
        ("parking", {"key": "k", "n": 2}),
        ("parking", {"key": "k", "n": 3}),
    )
    workers = [installation.relay(), installation.consumer()]
    installation.wait(lambda: installation.row(dead).status == "dead", "the event died", alive=workers)
    # A person mends what made it fail.
    row = installation.row(dead)
    installation.database.execute(
        "UPDATE probe_outbox_messages SET payload = REPLACE(payload, 'discard', 'ok') WHERE id = %s", [row.id]
    )
    assert publisher.replay(row.id) == 1
    installation.wait_until_done(alive=workers)
    installation.check(retried=[dead])
    assert [effect.n for effect in installation.effects()] == [1, 2, 3]


def test_record_too_large_for_its_topic_dies_and_its_key_goes_on(installation: Installation) -> None:
    """The topic takes less than the project's limit for references allows; the producer cannot know."""
    assert installation.kafka is not None
    create_topic(installation.kafka, installation.topic(), **{"max.message.bytes": "65536"})
    event_ids = installation.publish(
        *[("step", {"key": f"before-{n}", "n": n}) for n in range(20)],
        ("step", {"key": "big", "n": 20}),
        ("step", {"key": "big", "n": 21, "filler": _noise(200_000)}),
        ("step", {"key": "big", "n": 22}),
        *[("step", {"key": f"after-{n}", "n": n}) for n in range(23, 43)],
    )
    too_large = event_ids[21]
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    installation.check(dead=[too_large])
    reason = installation.row(too_large).last_error
    assert reason is not None
    assert reason.startswith("the broker refused the record: ")
    assert "MessageSizeTooLargeError" in reason
    assert [effect.n for effect in installation.effects() if effect.key == "big"] == [20, 22]


def test_large_payload_travels_by_reference(installation: Installation) -> None:
    """A snapshot of 2 MB is kept whole, and its neighbours are not held up."""
    workers = [installation.relay("agent"), installation.consumer("agent")]
    installation.publish(
        ("snapshot", {"conversation_id": "small", "n": 1}),
        ("snapshot", {"conversation_id": "big", "n": 1, "bytes": 2 * 1024 * 1024}),
        ("snapshot", {"conversation_id": "small", "n": 2}),
        ("snapshot", {"conversation_id": "big", "n": 2, "bytes": 2 * 1024 * 1024}),
    )
    installation.wait_until_done(service="agent", alive=workers)
    kept = installation.database.query(
        "SELECT conversation_id, CHAR_LENGTH(snapshot_json), snapshot_json LIKE '%\"n\":2%'"
        " FROM agent_state_snapshot_records ORDER BY conversation_id"
    )
    assert [(conversation, length > 2 * 1024 * 1024, newest) for conversation, length, newest in kept] == [
        ("big", True, 1),
        ("small", False, 1),
    ]
    assert installation.statuses("agent") == {"consumed": 4}


def _noise(size: int) -> str:
    """Return text that no compression makes small."""
    return random.Random(size).randbytes(size // 2).hex()
