"""What other software sees on the topic, and what it may put there: through ``kcat``, which shares no code with us."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import ON_EACH_MYSQL
from tests.acceptance.harness import Installation
from tests.acceptance.kcat import Kcat

pytestmark = ON_EACH_MYSQL


@pytest.fixture
def kcat(installation: Installation) -> Kcat:
    """Give a foreign client on the installation's topic."""
    assert installation.kafka is not None
    return Kcat(installation.kafka, installation.topic(), installation.folder)


def test_record_is_what_the_domain_says(installation: Installation, kcat: Kcat) -> None:
    (event_id,) = installation.publish(("step", {"key": "Köln-1", "n": 7}))
    installation.database.execute(
        "INSERT INTO probe_outbox_messages (event_type, message_key, payload) VALUES ('probe.step', 'bare', %s)",
        ['{"payload": {"key": "bare", "n": 8}}'],
    )
    installation.relay("probe", "--once").wait(timeout_s=30)
    first, bare = installation.rows()
    records = {record["key"]: record for record in kcat.consume()}
    assert records.keys() == {"Köln-1", "bare"}
    assert json.loads(records["Köln-1"]["payload"]) == {
        "outbox_id": first.id,
        "event_id": event_id,
        "event_type": "probe.step",
        "event_version": "v1",
        "service_name": "probe",
        "aggregate_id": "Köln-1",
        "payload": {"key": "Köln-1", "n": 7, "fail_times": 0, "sleep_ms": 0, "verdict": "ok", "every": 1, "filler": ""},
    }
    assert records["Köln-1"]["headers"] == {
        "installation_id": installation.database.value("SELECT installation_id FROM outbox_installation"),
        "event_id": event_id,
        "event_type": "probe.step",
        "event_version": "v1",
        "service_name": "probe",
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_type": "probe.step",
        "ce_source": "/outbox/probe",
        "ce_subject": "Köln-1",
    }
    assert json.loads(records["bare"]["payload"]) == {
        "outbox_id": bare.id,
        "event_id": str(bare.id),
        "event_type": "probe.step",
        "event_version": "v1",
        "service_name": "probe",
        "aggregate_id": "",
        "payload": {"key": "bare", "n": 8},
    }


def test_records_of_one_key_lie_in_one_partition_in_the_order_of_ids(installation: Installation, kcat: Kcat) -> None:
    installation.publish(*[("step", {"key": f"k{n % 7}", "n": n}) for n in range(70)])
    installation.relay("probe", "--once").wait(timeout_s=30)
    records = kcat.consume()
    assert len({record["partition"] for record in records}) == 3
    for number in range(7):
        of_key = [record for record in records if record["key"] == f"k{number}"]
        assert len({record["partition"] for record in of_key}) == 1
        ids = [json.loads(record["payload"])["outbox_id"] for record in of_key]
        assert ids == sorted(ids)
        assert len(ids) == 10


def test_garbage_is_kept_and_stops_nobody(installation: Installation, kcat: Kcat) -> None:
    first, second = installation.publish(("step", {"key": "k", "n": 1}), ("step", {"key": "k", "n": 2}))
    installation.relay("probe", "--once").wait(timeout_s=30)
    known = installation.row(first).id
    message = {"outbox_id": known, "event_type": "probe.step", "service_name": "probe", "payload": {}}
    garbage = [
        b"not JSON at all",
        b"\xff\xfe\x00binary\x80",
        b"[1, 2, 3]",
        b'{"event_type": "probe.step"}',
        json.dumps({**message, "outbox_id": "7"}).encode(),
        json.dumps({**message, "outbox_id": 2**70}).encode(),
        json.dumps({**message, "outbox_id": -1}).encode(),
        json.dumps({**message, "outbox_id": known + 10_000}).encode(),
        json.dumps({**message, "service_name": "agent"}).encode(),
        json.dumps({**message, "event_type": "agent.state.snapshot.persist"}).encode(),
        b"",
    ]
    for number, value in enumerate(garbage):
        kcat.produce(value, key=f"garbage-{number}", headers={"from": "elsewhere"})
    third, _ = installation.publish(("step", {"key": "k", "n": 3}), ("step", {"key": "other", "n": 4}))
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    rejected = installation.database
    sql = 'SELECT "key", value, reason, headers, topic, "partition", "offset" FROM outbox_rejected_records'
    sql = sql.replace('"', "`")
    installation.wait(lambda: len(rejected.query(sql)) == len(garbage), "the garbage is kept", alive=workers)
    installation.check()
    assert [effect.n for effect in installation.effects() if effect.key == "k"] == [1, 2, 3]
    kept = {bytes(key).decode(): (bytes(value or b""), reason) for key, value, reason, *_ in rejected.query(sql)}
    assert {key: value for key, (value, _) in kept.items()} == {
        f"garbage-{number}": value for number, value in enumerate(garbage)
    }
    assert all(reason for _, reason in kept.values())
    assert "no row" in kept["garbage-7"][1]
    assert "'agent'" in kept["garbage-8"][1]
    on_topic = {(record["partition"], record["offset"]): record["key"] for record in kcat.consume()}
    for key, _, _, headers, topic, partition, offset in rejected.query(sql):
        assert topic == installation.topic()
        assert on_topic[partition, offset] == bytes(key).decode()
        assert json.loads(headers) == [["from", "elsewhere"]]
    assert {first, second, third} <= {effect.event_id for effect in installation.effects()}


def test_foreign_copy_of_a_record_changes_nothing(installation: Installation, kcat: Kcat) -> None:
    """Once before its event is consumed, once after; and once with a payload that is not the row's."""
    installation.publish(("step", {"key": "k", "n": 1}))
    installation.relay("probe", "--once").wait(timeout_s=30)
    (record,) = kcat.consume()
    kcat.produce(record["payload"].encode(), key="k")
    consumer = installation.consumer()
    installation.wait_until_done(alive=[consumer])
    kcat.produce(record["payload"].encode(), key="k")
    kcat.produce(record["payload"].replace('"n":1', '"n":99').encode(), key="another key")
    consumer.stop()
    again = installation.consumer("probe", "--once")
    again.wait(timeout_s=60)
    installation.check()
    assert [effect.n for effect in installation.effects()] == [1]
    assert installation.database.value("SELECT COUNT(*) FROM outbox_rejected_records") == 0


def test_record_of_a_pruned_row_is_rejected(installation: Installation, kcat: Kcat) -> None:
    installation.publish(("step", {"key": "k", "n": 1}))
    workers = [installation.relay(), installation.consumer()]
    installation.wait_until_done(alive=workers)
    (record,) = kcat.consume()
    pruned_id = installation.rows()[0].id
    installation.database.execute(
        "UPDATE probe_outbox_messages SET consumed_at = consumed_at - INTERVAL 8 DAY,"
        " created_at = created_at - INTERVAL 8 DAY"
    )
    done = installation.run("outbox_prune", "probe", "--older-than", "7d")
    assert done.returncode == 0, done.stderr
    assert not installation.rows()
    kcat.produce(record["payload"].encode(), key="k")
    reasons = installation.database
    installation.wait(
        lambda: reasons.query("SELECT reason FROM outbox_rejected_records"), "the record is rejected", alive=workers
    )
    ((reason,),) = reasons.query("SELECT reason FROM outbox_rejected_records")
    assert f"no row {pruned_id}" in reason
    assert len(installation.effects()) == 1
