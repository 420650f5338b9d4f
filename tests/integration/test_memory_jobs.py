"""Memory jobs: one a text, whoever asks how often."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_events.memory.events import MemoryExtractRequested, memory_extract, publish_memory_extract
from agent_events.memory.models import MemoryJob, MemoryOutboxMessage
from outbox.testing import drain
from tests import records

MOMENT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def extract(text: str = "I get up at six", **fields: Any) -> MemoryExtractRequested:
    return memory_extract(
        **({"user_id": 7, "conversation_id": "talk", "source_role": "user", "occurred_at": MOMENT} | fields),
        source_text=text,
    )


def jobs(alias: str) -> list[Any]:
    return records.rows(MemoryJob, alias, "idempotency_key", "conversation_id", "source_text")


def test_extract_becomes_a_job(alias: str) -> None:
    publish_memory_extract(
        user_id=7,
        conversation_id="talk",
        source_role="user",
        source_text="x" * 2_000,
        occurred_at=MOMENT,
        assistant_id="a-1",
        run_id="r-1",
        source_message_id=3,
        trace_id="t-1",
    )
    drain("memory", raise_on_dead=True)
    job = MemoryJob.objects.using(alias).get()
    assert (job.job_type, job.status, job.retry_count, job.max_retry) == ("extract", "pending", 0, 6)
    assert (job.user_id, job.conversation_id, job.source_role, job.occurred_at) == (7, "talk", "user", MOMENT)
    assert (job.assistant_id, job.run_id, job.source_message_id, job.trace_id) == ("a-1", "r-1", 3, "t-1")
    assert job.source_text == "x" * 1_500
    assert job.idempotency_key.startswith("memory_extract_7_")


def test_known_key_is_done_and_leaves_the_job_alone(alias: str) -> None:
    records.handle_payloads(extract(), using=alias)
    MemoryJob.objects.using(alias).update(status="succeeded", retry_count=2)
    records.handle_payloads(extract("new"), extract(), extract("new"), using=alias)
    assert [row[2] for row in jobs(alias)] == ["I get up at six", "new"]
    assert records.rows(MemoryJob, alias, "status", "retry_count") == [("succeeded", 2), ("pending", 0)]


def test_key_tells_users_conversations_and_texts_apart(alias: str) -> None:
    records.handle_payloads(
        extract(), extract(user_id=8), extract(conversation_id="Talk"), extract("other"), using=alias
    )
    assert len(jobs(alias)) == 4


def test_jobs_keep_the_order_of_their_events(alias: str) -> None:
    texts = [f"text {number}" for number in range(50)]
    records.handle_payloads(*map(extract, texts), using=alias)
    assert [row[2] for row in jobs(alias)] == texts


@pytest.mark.parametrize("seed", range(3))
def test_list_of_extracts_gives_what_one_by_one_gives(alias: str, seed: int) -> None:
    rng = random.Random(seed)
    deliveries = [
        records.delivery(extract(f"text {rng.randint(1, 12)}", conversation_id=rng.choice(["c", "C"])), using=alias)
        for _ in range(40)
    ]
    records.assert_lists_are_a_matter_of_speed(deliveries, rng, lambda: jobs(alias))


def test_list_is_one_statement(alias: str) -> None:
    deliveries = [records.delivery(extract(f"text {number}"), using=alias) for number in range(300)]
    with records.counted_statements(alias) as statements:
        records.handle(deliveries)
    assert sum("memory_jobs" in query["sql"] for query in statements.captured_queries) == 1


def test_wrong_payload_is_dead_with_the_reason(alias: str) -> None:
    faults = [
        ('"source_text":"hello"', '"source_text":""', "source_text"),
        ('"user_id":7', '"user_id":"7"', "user_id"),
        ('"idempotency_key":"memory', '"idempotency_key":" memory', "idempotency_key"),
        ('"source_role":"user"', f'"source_role":"user","trace_id":"{"t" * 200}"', "trace_id"),
        ('"event_version":"v1"', '"event_version":"v2"', "v2"),
    ]
    for written, instead, _ in faults:
        publish_memory_extract(user_id=7, conversation_id="talk", source_role="user", source_text="hello")
        records.spoil(MemoryOutboxMessage, alias, written=written, instead=instead)
    for (_, _, named), each in zip(faults, drain("memory").dead, strict=True):
        assert named in each.reason
    assert not MemoryJob.objects.using(alias).exists()
