"""The timeline: one step a seq, repeats are recognised, and a step whose seq is taken goes behind the last one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from agent_events.agent import timeline
from agent_events.agent.events import AgentTimelinePersistRequested, publish_timeline_event
from agent_events.agent.models import AgentOutboxMessage, AgentTimelineEvent
from outbox import Retry
from outbox.testing import drain
from tests import records


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def step(seq: int = 1, content: str | None = "a", **fields: Any) -> AgentTimelinePersistRequested:
    return AgentTimelinePersistRequested(
        **({"user_id": 7, "conversation_id": "talk", "kind": "text", "tokens_consumed": 0} | fields),
        seq=seq,
        content=content,
    )


def steps(alias: str) -> list[Any]:
    """Return (chat, user, seq, requested seq, content) in that order."""
    return records.rows(
        AgentTimelineEvent,
        alias,
        "chat_id",
        "user_id",
        "seq",
        "requested_seq",
        "content",
        order_by=("chat_id", "user_id", "seq"),
    )


def test_step_is_kept_at_its_seq(alias: str) -> None:
    records.handle_payloads(
        step(3, "Hi", role="assistant", kind="tool", payload_json='{"a":1}', tokens_consumed=4), using=alias
    )
    kept = AgentTimelineEvent.objects.using(alias).get()
    assert (kept.chat_id, kept.user_id, kept.seq, kept.kind) == ("talk", 7, 3, "tool")
    assert (kept.role, kept.content, kept.payload_json, kept.tokens_consumed) == ("assistant", "Hi", '{"a":1}', 4)


def test_seqs_are_counted_by_chat_and_user(alias: str) -> None:
    records.handle_payloads(step(), step(conversation_id="Talk"), step(user_id=8), using=alias)
    assert [row[2] for row in steps(alias)] == [1, 1, 1]


def test_same_seq_with_same_content_is_a_repeat(alias: str) -> None:
    records.handle_payloads(step(1, "a", role="user"), using=alias)
    records.handle_payloads(step(1, "a", role="user"), step(1, "a", role="user"), using=alias)
    assert steps(alias) == [("talk", 7, 1, 1, "a")]


def test_absent_and_empty_text_are_the_same(alias: str) -> None:
    records.handle_payloads(step(1, None), step(1, "", role=""), using=alias)
    assert steps(alias) == [("talk", 7, 1, 1, None)]


def test_same_seq_with_other_content_takes_the_next_free_seq(alias: str) -> None:
    others = [{"content": "b"}, {"kind": "tool"}, {"role": "user"}, {"payload_json": "{}"}, {"tokens_consumed": 1}]
    records.handle_payloads(step(1), step(2), using=alias)
    for other in others:
        records.handle_payloads(step(1, **({"content": "a"} | other)), using=alias)
    assert [row[2:4] for row in steps(alias)] == [(1, 1), (2, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)]


def test_next_free_seq_is_behind_the_last_step_and_fills_no_gap(alias: str) -> None:
    records.handle_payloads(step(1), step(5), using=alias)
    records.handle_payloads(step(1, "later"), using=alias)
    assert [row[2] for row in steps(alias)] == [1, 5, 6]


def test_repeat_of_a_step_that_was_moved_is_recognised(alias: str) -> None:
    records.handle_payloads(step(1, "a"), step(1, "b"), using=alias)
    records.handle_payloads(step(1, "b"), step(1, "a"), using=alias)
    assert [row[2:] for row in steps(alias)] == [(1, 1, "a"), (2, 1, "b")]


def test_one_taken_seq_costs_the_others_of_a_list_nothing(alias: str) -> None:
    records.handle_payloads(step(2, "old"), using=alias)
    records.handle_payloads(step(1, "a"), step(2, "b"), step(3, "c"), step(2, "old"), step(4, "d"), using=alias)
    # "b" found 2 taken when "a" and "old" were there, so it took 3; "c" took what was free then.
    assert [row[2:] for row in steps(alias)] == [(1, 1, "a"), (2, 2, "old"), (3, 2, "b"), (4, 3, "c"), (5, 4, "d")]


@pytest.mark.parametrize("seed", range(4))
def test_list_of_steps_gives_what_one_by_one_gives(alias: str, seed: int) -> None:
    rng = random.Random(seed)
    deliveries = [
        records.delivery(
            step(
                rng.randint(1, 12),
                rng.choice(["a", "b", None]),
                user_id=rng.choice([1, 2]),
                conversation_id=rng.choice(["c", "C"]),
            ),
            using=alias,
        )
        for _ in range(30)
    ]
    records.assert_lists_are_a_matter_of_speed(deliveries, rng, lambda: steps(alias))


def test_number_of_statements_does_not_grow_with_the_list(alias: str) -> None:
    counts = []
    for first, length in ((1, 1), (100, 300)):
        deliveries = [records.delivery(step(seq), using=alias) for seq in range(first, first + length)]
        with records.counted_statements(alias) as statements:
            records.handle(deliveries)
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_step_that_finds_three_seqs_taken_is_tried_again_later(alias: str, monkeypatch: Any) -> None:
    records.handle_payloads(step(1, "a"), step(2, "b"), using=alias)
    publish_timeline_event(user_id=7, conversation_id="talk", seq=1, kind="text", content="c")
    tried: list[int] = []

    def taken_meanwhile(step: AgentTimelinePersistRequested, *, using: str) -> int:
        tried.append(step.seq)
        return 2

    with monkeypatch.context() as patch:
        patch.setattr(timeline, "next_free_seq", taken_meanwhile)
        with pytest.raises(Retry, match="seq 1 of chat 'talk' is taken"), transaction.atomic(using=alias):
            timeline.add([step(1, "c")], using=alias)
        tried.clear()
        assert drain("agent").retried == 1
        assert len(tried) == 3
    row = AgentOutboxMessage.objects.using(alias).get()
    assert (row.status, row.retry_count) == ("pending", 1)
    assert "is taken" in row.last_error
    drain("agent", ignore_backoff=True, raise_on_dead=True)
    assert [row[2:] for row in steps(alias)] == [(1, 1, "a"), (2, 2, "b"), (3, 1, "c")]


def test_two_at_once_take_two_seqs(alias: str) -> None:
    records.require_concurrent_writers(alias)
    with transaction.atomic(using=alias):
        timeline.add([step(1, "first")], using=alias)
        other = records.in_thread(alias, lambda: records.handle_payloads(step(1, "second"), using=alias))
        records.wait_until_somebody_waits(alias, for_table="agent_timeline_events")
    other.result(timeout=20)
    assert [row[2:] for row in steps(alias)] == [(1, 1, "first"), (2, 1, "second")]


def test_wrong_payload_is_dead_with_the_reason(alias: str) -> None:
    faults = [('"seq":1', '"seq":0', "seq"), ('"kind":"text"', '"kind":""', "kind"), ('"user_id":7,', "", "user_id")]
    for written, instead, _ in faults:
        publish_timeline_event(user_id=7, conversation_id="talk", seq=1, kind="text")
        records.spoil(AgentOutboxMessage, alias, written=written, instead=instead)
    for (_, _, named), each in zip(faults, drain("agent").dead, strict=True):
        assert named in each.reason
    assert not AgentTimelineEvent.objects.using(alias).exists()
