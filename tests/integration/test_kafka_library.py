"""The outbox beside a team's own use of kafka-python, and with a kafka-python that is made otherwise, in processes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from tests.services import require

CHECKOUT = Path(__file__).resolve().parents[2]
EVERYTHING = (
    "KafkaProducer._accumulator,KafkaProducer._sender,KafkaProducer._metadata,KafkaProducer._partition,"
    "KafkaProducer._closed,KafkaConsumer._fetcher,KafkaConsumer._coordinator,KafkaConsumer._net,KafkaAdminClient._net,"
    "KafkaNetClient._net,KafkaNetClient._manager,KafkaNetClient.cluster"
)

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Give a function that starts ``kafka_process`` and returns what it found."""
    servers = require("kafka")
    topics: list[str] = []

    def start(what: str) -> dict[str, Any]:
        topics.append(f"library-{secrets.token_hex(6)}")
        command = [sys.executable, "-m", "tests.integration.kafka_process", what, servers, topics[-1]]
        settings = {
            "DEBUG": "true",
            "DJANGO_SETTINGS_MODULE": "smartflow.settings",
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "READ_DOT_ENV": "false",
        }
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    yield start
    admin = KafkaAdminClient(bootstrap_servers=servers.split(","))
    try:
        admin.delete_topics(topics, raise_errors=False)
    finally:
        admin.close()


def check_work_done(found: dict[str, Any]) -> None:
    """See that everything was sent and received once, and that everything was closed."""
    done = found["outbox"]
    assert done["acknowledged"] == 100
    assert done["received"] == list(range(100))
    assert done["headers"] == ["(('name', b'header'), ('name', b'again'))"]
    assert done["lag"] == 0
    assert done["shared"] == list(range(200, 240)), "two members share the partitions"
    assert done["threads"] == [], "the threads of closed clients have ended"
    assert done["members"] == 0, "the group was left, and not only when the session had run out"
    assert found["sockets"] == 0, "no connection is left"


def test_library_is_as_it_was_and_clients_of_others_are_as_without_us(run: Run) -> None:
    found = run("untouched")

    check_work_done(found)
    assert found["said"] == []
    assert found["changed"] == []
    assert found["plain"] == {
        "kinds": ["list"],
        "headers": ["[('name', b'header'), ('name', b'again')]"],
        "lengths": [11],
        "records_are": "kafka.consumer.fetcher",
        "batches": 1,
    }


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("KafkaProducer._accumulator", ["records are encoded by send()"]),
        ("DefaultRecordBatchBuilder._buffer", ["records are encoded by send()"]),
        ("MemoryRecordsBuilder._builder", ["records are encoded by send()"]),
        ("KafkaConsumer._fetcher", ["records are read by the client alone"]),
        ("DefaultRecordBatch._buffer", ["records are read by the client alone"]),
        ("KafkaConsumer._coordinator", ["poll() joins the group"]),
        ("KafkaNetClient._net", ["partitions move without waiting"]),
        ("KafkaNetClient.cluster", ["why no broker lets us in is not known"]),
        ("KafkaConsumer._net", ["it is not known whether a closed client has ended"]),
        ("kafka.net.compat", ["why no broker lets us in is not known", "partitions move without waiting"]),
        (
            "kafka.producer.record_accumulator,kafka.consumer.fetcher",
            ["records are encoded by send()", "records are read by the client alone"],
        ),
        (
            EVERYTHING,
            [
                "why no broker lets us in is not known",
                "records are encoded by send()",
                "records are read by the client alone",
                "poll() joins the group",
                "partitions move without waiting",
                "it is not known whether a closed client has ended",
            ],
        ),
    ],
)
def test_where_a_private_name_is_missing_the_public_way_is_taken_and_said_once(
    run: Run, hidden: str, said: list[str]
) -> None:
    found = run(hidden)

    check_work_done(found)
    assert len(found["said"]) == len(said), found["said"]
    for line, part in zip(found["said"], said, strict=True):
        assert line.startswith("kafka-python 3.0."), line
        assert "is not as expected, using its public interface: " + part in line
        assert "has no attribute" in line or "halted; None in sys.modules" in line or "not taken" in line
