"""Chat history and token usage: each event counts once, alone or in a list, and what users say goes to memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_events.agent.events import (
    ChatHistoryPersistRequested,
    ChatTokenUsageAdjustRequested,
    publish_chat_history,
    publish_token_usage,
)
from agent_events.agent.models import AgentChat, AgentOutboxMessage, ChatHistory, TokenLedgerEntry
from agent_events.memory.events import MemoryExtractRequested
from agent_events.memory.models import MemoryJob, MemoryOutboxMessage
from outbox.testing import captured_events, drain
from tests import records

MOMENT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def message(text: str = "Hello", **fields: Any) -> ChatHistoryPersistRequested:
    return ChatHistoryPersistRequested(
        **({"user_id": 7, "conversation_id": "talk", "role": "assistant", "tokens_consumed": 0} | fields), message=text
    )


def usage(tokens: int = 5, **fields: Any) -> ChatTokenUsageAdjustRequested:
    return ChatTokenUsageAdjustRequested(
        **({"user_id": 7, "conversation_id": "talk", "reason": "title", "triggered_at": MOMENT} | fields),
        tokens_delta=tokens,
    )


def chats(alias: str) -> list[Any]:
    return records.rows(
        AgentChat,
        alias,
        "conversation_id",
        "user_id",
        "message_count",
        "tokens_total",
        order_by=("conversation_id", "user_id"),
    )


# --- chat history ------------------------------------------------------------------------------------------------


def test_message_is_appended_and_its_chat_created(alias: str) -> None:
    records.handle_payloads(
        message("Hi", reasoning_content="hm", reasoning_duration_seconds=3, tokens_consumed=11), using=alias
    )
    kept = ChatHistory.objects.using(alias).get()
    assert (kept.user_id, kept.conversation_id, kept.role, kept.message) == (7, "talk", "assistant", "Hi")
    assert (kept.reasoning_content, kept.reasoning_duration_seconds, kept.tokens_consumed) == ("hm", 3, 11)
    chat = AgentChat.objects.using(alias).get()
    assert (chat.message_count, chat.tokens_total) == (1, 11)
    assert chat.last_message_at is not None


def test_messages_move_the_chat_and_keep_their_order(alias: str) -> None:
    records.handle_payloads(message("1", tokens_consumed=1), using=alias)
    AgentChat.objects.using(alias).update(last_message_at=MOMENT, created_at=MOMENT, updated_at=MOMENT)
    records.handle_payloads(message("2", tokens_consumed=10), message("3", tokens_consumed=100), using=alias)
    assert chats(alias) == [("talk", 7, 3, 111)]
    assert records.rows(ChatHistory, alias, "message") == ["1", "2", "3"]
    later = AgentChat.objects.using(alias).get()
    assert later.last_message_at > MOMENT
    assert later.updated_at > MOMENT
    assert later.created_at == MOMENT


def test_chats_are_kept_apart_by_user_and_letter_case(alias: str) -> None:
    records.handle_payloads(
        message(conversation_id="Talk"), message(), message(user_id=8), message(conversation_id="talk"), using=alias
    )
    assert sorted(chats(alias)) == [("Talk", 7, 1, 0), ("talk", 7, 2, 0), ("talk", 8, 1, 0)]


def test_repeated_event_changes_nothing(alias: str) -> None:
    once = records.delivery(message("Hi", role="user", tokens_consumed=9), using=alias)
    records.handle([once])
    records.handle([once])
    records.handle([once, records.delivery(message("new"), using=alias), once])
    assert records.rows(ChatHistory, alias, "message") == ["Hi", "new"]
    assert chats(alias) == [("talk", 7, 2, 9)]
    assert MemoryOutboxMessage.objects.using(alias).count() == 1


def test_long_texts_of_any_script_are_kept_whole(alias: str) -> None:
    text = "日程🗓️ 'quoted' \\ " * 40_000
    records.handle_payloads(message(text, reasoning_content=text), using=alias)
    kept = ChatHistory.objects.using(alias).get()
    assert kept.message == text
    assert kept.reasoning_content == text


def test_large_list_is_written_in_statements_that_every_server_takes(alias: str) -> None:
    text = "\"'" * 450_000
    with records.counted_statements(alias) as statements:
        records.handle_payloads(*[message(text) for _ in range(6)], using=alias)
    assert chats(alias) == [("talk", 7, 6, 0)]
    assert max(len(query["sql"]) for query in statements.captured_queries) < 5 * 1024 * 1024


def test_number_of_statements_does_not_grow_with_the_list(alias: str) -> None:
    counts = []
    for length in (1, 300):
        said = [message("Hi", role="user", conversation_id=f"talk-{number}") for number in range(length)]
        deliveries = [records.delivery(each, using=alias) for each in said]
        with records.counted_statements(alias) as statements:
            records.handle(deliveries)
        counts.append(len(statements))
    assert counts[0] == counts[1]


# --- what goes to the memory service -----------------------------------------------------------------------------


def test_what_a_user_says_goes_to_memory(alias: str) -> None:
    text = "ü" * 2_000
    with captured_events("memory") as events:
        records.handle_payloads(message(text, role="user", conversation_id="c-9", user_id=3), using=alias)
    (extract,) = events.of(MemoryExtractRequested)
    digest = hashlib.sha256(f"3|c-9|{text}".encode()).hexdigest()
    assert extract.idempotency_key == f"memory_extract_3_{digest[:16]}"
    assert (extract.user_id, extract.conversation_id, extract.source_role) == (3, "c-9", "user")
    assert extract.source_text == "ü" * 1_500
    assert extract.source_message_id == ChatHistory.objects.using(alias).get().pk
    row = MemoryOutboxMessage.objects.using(alias).get()
    assert (row.message_key, row.event_type) == ("c-9", "memory.extract.requested")


def test_other_messages_do_not_go_to_memory(alias: str) -> None:
    others = [("assistant", "Hello"), ("system", "Hello"), ("user", ""), ("user", " \n"), ("User", "Hello")]
    records.handle_payloads(*[message(text, role=role) for role, text in others], using=alias)
    assert ChatHistory.objects.using(alias).count() == len(others)
    assert not MemoryOutboxMessage.objects.using(alias).exists()


def test_nothing_goes_to_memory_when_it_is_switched_off(alias: str, settings: Any) -> None:
    settings.SMARTFLOW = {"MEMORY_ENABLED": False}
    records.handle_payloads(message("Hello", role="user"), using=alias)
    assert chats(alias) == [("talk", 7, 1, 0)]
    assert not MemoryOutboxMessage.objects.using(alias).exists()


def test_extracts_continue_the_traces_of_their_messages(alias: str) -> None:
    traces = [f"00-{'0' * 31}{number}-{'0' * 15}1-01" for number in (1, 1, 2)] + [""]
    records.handle(
        [
            records.delivery(message(str(number), role="user"), using=alias, traceparent=trace)
            for number, trace in enumerate(traces)
        ]
    )
    assert records.rows(MemoryOutboxMessage, alias, "traceparent") == traces


def test_chain_from_chat_to_memory_job(alias: str) -> None:
    for text in ("I get up at six", "Noted", "I get up at six"):
        publish_chat_history(
            user_id=7, conversation_id="talk", role="assistant" if text == "Noted" else "user", message=text
        )
    drained = drain("agent", "memory", raise_on_dead=True)
    assert drained.consumed == 5
    assert chats(alias) == [("talk", 7, 3, 0)]
    assert records.rows(MemoryJob, alias, "source_text") == ["I get up at six"]
    assert set(records.rows(MemoryOutboxMessage, alias, "status")) == {"consumed"}


def test_step_of_chain_is_undone_when_its_event_cannot_be_published(alias: str, configure: Callable[..., None]) -> None:
    publish_chat_history(user_id=7, conversation_id="talk", role="user", message="hello " * 20)
    configure(MAX_PAYLOAD_BYTES=100)
    drained = drain("agent")
    assert drained.retried == 1
    assert not ChatHistory.objects.using(alias).exists()
    assert not AgentChat.objects.using(alias).exists()
    configure()
    drain("agent", ignore_backoff=True)
    assert chats(alias) == [("talk", 7, 1, 0)]
    assert MemoryOutboxMessage.objects.using(alias).count() == 1


# --- tokens ------------------------------------------------------------------------------------------------------


def test_tokens_are_added_and_entered_in_the_ledger(alias: str) -> None:
    records.handle_payloads(message(tokens_consumed=100), using=alias)
    AgentChat.objects.using(alias).update(last_message_at=MOMENT, updated_at=MOMENT)
    (first, _) = records.handle_payloads(usage(5), usage(6, reason="summary"), using=alias)
    assert chats(alias) == [("talk", 7, 1, 111)]
    chat = AgentChat.objects.using(alias).get()
    assert chat.last_message_at == MOMENT
    assert chat.updated_at > MOMENT
    assert records.rows(
        TokenLedgerEntry, alias, "conversation_id", "user_id", "tokens_delta", "reason", "triggered_at"
    ) == [("talk", 7, 5, "title", MOMENT), ("talk", 7, 6, "summary", MOMENT)]
    assert TokenLedgerEntry.objects.using(alias).filter(event_id=first.event_id).count() == 1


def test_tokens_of_a_chat_that_is_missing_are_not_lost(alias: str) -> None:
    records.handle_payloads(usage(5), using=alias)
    assert chats(alias) == [("talk", 7, 0, 5)]
    assert AgentChat.objects.using(alias).get().last_message_at is None


def test_repeated_usage_is_added_once(alias: str) -> None:
    once = records.delivery(usage(5), using=alias)
    records.handle([once, once])
    records.handle([once, records.delivery(usage(1), using=alias)])
    assert chats(alias) == [("talk", 7, 0, 6)]
    assert TokenLedgerEntry.objects.using(alias).count() == 2


# --- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_list_of_messages_gives_what_one_by_one_gives(alias: str, seed: int) -> None:
    rng = random.Random(seed)
    deliveries = [
        records.delivery(
            message(
                rng.choice(["", "a", "b", "long " * 400]),
                user_id=rng.choice([1, 2]),
                conversation_id=rng.choice(["c", "C", "d"]),
                role=rng.choice(["user", "assistant"]),
                tokens_consumed=rng.randint(0, 9),
            ),
            using=alias,
            event_id=f"event-{rng.randint(1, 25)}",
            traceparent=rng.choice(["", "", f"00-{'1' * 32}-{'2' * 16}-01"]),
        )
        for _ in range(40)
    ]

    def look() -> Any:
        history = records.rows(ChatHistory, alias, "pk", "event_id", "conversation_id", "message", "tokens_consumed")
        event_ids = {row[0]: row[1] for row in history}
        with_origin = [
            (event_ids[extract.source_message_id], extract.idempotency_key, extract.source_text)
            for extract in events.of(MemoryExtractRequested)
        ]
        traces = records.rows(MemoryOutboxMessage, alias, "traceparent")
        return [row[1:] for row in history], chats(alias), with_origin, traces

    with captured_events("memory") as events:
        records.assert_lists_are_a_matter_of_speed(deliveries, rng, look)


@pytest.mark.parametrize("seed", range(3))
def test_list_of_usages_gives_what_one_by_one_gives(alias: str, seed: int) -> None:
    rng = random.Random(seed)
    deliveries = [
        records.delivery(
            usage(rng.randint(1, 9), user_id=rng.choice([1, 2]), conversation_id=rng.choice(["c", "C", "d"])),
            using=alias,
            event_id=f"event-{rng.randint(1, 25)}",
        )
        for _ in range(40)
    ]
    records.assert_lists_are_a_matter_of_speed(
        deliveries,
        rng,
        lambda: (records.rows(TokenLedgerEntry, alias, "event_id", "conversation_id", "tokens_delta"), chats(alias)),
    )


# --- what can never succeed --------------------------------------------------------------------------------------


def test_event_id_that_no_row_can_hold_is_dead_alone(alias: str) -> None:
    publish_token_usage(user_id=7, conversation_id="talk", tokens_delta=5, reason="title")
    row = AgentOutboxMessage.objects.using(alias).get()
    AgentOutboxMessage.objects.using(alias).create(
        event_type=row.event_type,
        message_key="other",
        payload=row.payload.replace('"event_id":"', f'"event_id":"{"x" * 200}'),
    )
    drained = drain("agent")
    assert "event_id" in drained.dead[0].reason
    assert drained.consumed == 1
    assert chats(alias) == [("talk", 7, 0, 5)]


def test_wrong_payload_is_dead_with_the_reason(alias: str) -> None:
    faults = [
        ('"tokens_delta":5', '"tokens_delta":0', "tokens_delta"),
        ('"user_id":7', '"user_id":-7', "user_id"),
        ('"reason":"title"', '"reason":"\\u0000"', "NUL"),
        ('"event_version":"v1"', '"event_version":"v9"', "v9"),
        ('"triggered_at":"2026', '"triggered_at":"year', "triggered_at"),
    ]
    for written, instead, _ in faults:
        publish_token_usage(user_id=7, conversation_id="talk", tokens_delta=5, reason="title", triggered_at=MOMENT)
        records.spoil(AgentOutboxMessage, alias, written=written, instead=instead)
    dead = drain("agent").dead
    assert len(dead) == len(faults)
    for (_, _, named), each in zip(faults, dead, strict=True):
        assert named in each.reason
    assert set(records.rows(AgentOutboxMessage, alias, "status", "retry_count")) == {("dead", 0)}
    assert not TokenLedgerEntry.objects.using(alias).exists()
