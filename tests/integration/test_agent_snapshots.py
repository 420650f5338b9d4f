"""State snapshots: one row a conversation, the newest event wins; publishing one never harms a chat."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from django.db import connections, transaction

from agent_events.agent.events import AgentStateSnapshot, publish_agent_state_snapshot
from agent_events.agent.models import AgentChat, AgentOutboxMessage, AgentStateSnapshotRecord
from outbox.testing import captured_events, drain
from tests import records


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def snapshot(content: str = "{}", **fields: Any) -> AgentStateSnapshot:
    return AgentStateSnapshot(
        **({"conversation_id": "talk", "user_id": 7, "phase": "plan"} | fields), snapshot_json=content
    )


def kept(alias: str) -> list[Any]:
    return records.rows(
        AgentStateSnapshotRecord,
        alias,
        "conversation_id",
        "user_id",
        "phase",
        "snapshot_json",
        "outbox_id",
        order_by=("conversation_id",),
    )


# --- keeping -----------------------------------------------------------------------------------------------------


def test_snapshot_is_kept(alias: str) -> None:
    records.handle([records.delivery(snapshot('{"a":1}'), using=alias, outbox_id=5)])
    assert kept(alias) == [("talk", 7, "plan", '{"a":1}', 5)]


def test_newer_snapshot_replaces_the_whole_row(alias: str) -> None:
    records.handle([records.delivery(snapshot("1"), using=alias, outbox_id=5)])
    first = AgentStateSnapshotRecord.objects.using(alias).get()
    records.handle([records.delivery(snapshot("2", user_id=8, phase="done"), using=alias, outbox_id=6)])
    assert kept(alias) == [("talk", 8, "done", "2", 6)]
    second = AgentStateSnapshotRecord.objects.using(alias).get()
    assert second.created_at == first.created_at
    assert second.updated_at >= first.updated_at


@pytest.mark.parametrize("seed", range(3))
def test_newest_wins_whatever_the_order_of_arrival(alias: str, seed: int) -> None:
    rng = random.Random(seed)
    deliveries = [
        records.delivery(
            snapshot(str(number), conversation_id=f"talk-{number % 3}", user_id=number + 1),
            using=alias,
            outbox_id=number,
        )
        for number in range(1, 31)
    ]
    rng.shuffle(deliveries)
    for part in records.in_random_lists(deliveries, rng):
        records.handle(part)
    assert [row[4] for row in kept(alias)] == [30, 28, 29]
    assert [row[3] for row in kept(alias)] == ["30", "28", "29"]
    records.assert_lists_are_a_matter_of_speed(deliveries, rng, lambda: kept(alias))


def test_conversations_are_told_apart_by_letter_case(alias: str) -> None:
    records.handle_payloads(snapshot(), snapshot(conversation_id="Talk"), using=alias)
    assert sorted(row[0] for row in kept(alias)) == ["Talk", "talk"]


def test_large_list_is_written_in_statements_that_every_server_takes(alias: str) -> None:
    content = "\"'" * 450_000
    with records.counted_statements(alias) as statements:
        records.handle_payloads(
            *[snapshot(content, conversation_id=f"talk-{number}") for number in range(6)], using=alias
        )
    assert [row[3] == content for row in kept(alias)] == [True] * 6
    assert max(len(query["sql"]) for query in statements.captured_queries) < 5 * 1024 * 1024


def test_number_of_statements_does_not_grow_with_the_list(alias: str) -> None:
    deliveries = [records.delivery(snapshot(conversation_id=f"talk-{n}"), using=alias) for n in range(300)]
    with records.counted_statements(alias) as statements:
        records.handle(deliveries)
    assert sum("agent_state_snapshot_records" in query["sql"] for query in statements.captured_queries) == 1


# --- publishing --------------------------------------------------------------------------------------------------


@dataclass
class _State:
    phase: str


@dataclass
class _Runtime:
    common_state: _State | None = None
    steps: list[str] = field(default_factory=lambda: ["a"])


def test_publisher_serialises_the_runtime_snapshot_and_reads_its_phase(alias: str) -> None:
    snapshots: list[tuple[Any, str]] = [
        (SimpleNamespace(runtime_state=_Runtime(_State("executing"))), "executing"),
        ({"runtime_state": {"common_state": {"phase": "plan"}}}, "plan"),
        (SimpleNamespace(runtime_state=_Runtime(None)), ""),
        (SimpleNamespace(runtime_state=None), ""),
        ({"other": 1}, ""),
    ]
    for runtime, phase in snapshots:
        with captured_events("agent") as events:
            assert publish_agent_state_snapshot(runtime, conversation_id="talk", user_id=7)
        (event,) = events.of(AgentStateSnapshot)
        assert (event.conversation_id, event.user_id, event.phase) == ("talk", 7, phase)
        plain = msgspec.json.decode(event.snapshot_json)
        assert set(plain) == set(runtime if isinstance(runtime, dict) else vars(runtime))
    drain("agent", raise_on_dead=True)
    assert kept(alias)[0][3] == '{"other":1}'


def test_nothing_is_published_without_a_snapshot_or_with_publishing_switched_off(
    alias: str, configure: Callable[..., None]
) -> None:
    assert publish_agent_state_snapshot(None, conversation_id="talk", user_id=7) is None
    configure(ENABLED=False)
    assert publish_agent_state_snapshot({"a": 1}, conversation_id="talk", user_id=7) is None
    assert not AgentOutboxMessage.objects.using(alias).exists()


@pytest.mark.parametrize(
    ("runtime", "user_id"),
    [({"a": object()}, 7), ({"a": 1}, 0), ({"a": "x" * 2_000}, 7)],
    ids=["not serialisable", "invalid", "too large"],
)
def test_lost_snapshot_fails_neither_the_chat_nor_its_transaction(
    alias: str, configure: Callable[..., None], caplog: Any, runtime: Any, user_id: int
) -> None:
    configure(MAX_PAYLOAD_BYTES=1_000)
    with transaction.atomic(using=alias):
        AgentChat.objects.using(alias).create(conversation_id="before", user_id=7)
        assert publish_agent_state_snapshot(runtime, conversation_id="talk", user_id=user_id) is None
        AgentChat.objects.using(alias).create(conversation_id="after", user_id=7)
    assert records.rows(AgentChat, alias, "conversation_id") == ["before", "after"]
    assert "talk was not published" in caplog.text


def test_database_error_while_publishing_does_not_poison_the_transaction(alias: str, caplog: Any) -> None:
    table, away = "agent_outbox_messages", "agent_outbox_messages_away"
    quote = connections[alias].ops.quote_name
    _rename(alias, quote(table), quote(away))
    try:
        with transaction.atomic(using=alias):
            AgentChat.objects.using(alias).create(conversation_id="before", user_id=7)
            assert publish_agent_state_snapshot({"a": 1}, conversation_id="talk", user_id=7) is None
            AgentChat.objects.using(alias).create(conversation_id="after", user_id=7)
    finally:
        _rename(alias, quote(away), quote(table))
    assert records.rows(AgentChat, alias, "conversation_id") == ["before", "after"]
    assert "talk was not published" in caplog.text


def _rename(alias: str, table: str, to: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {to}")
