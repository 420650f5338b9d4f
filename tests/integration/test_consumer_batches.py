"""The batch is a matter of speed only: it gives what event by event would have given."""

from __future__ import annotations

import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from agent_events.agent.models import AgentOutboxMessage
from outbox import Discard
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from tests import factories
from tests.consumers import deliver, published
from tests.factories import get, make_due, records_of, row, statuses
from tests.repositories import note_large_texts
from tests.toys import BULK, HANDLED, NOTE, Toys, effect_ids

HOUR = timedelta(hours=1)


def test_list_handler_gets_its_events_in_one_call(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 10, event_type=BULK, key=lambda number: f"key-{number % 3}")

    deliver(alias, consumer, ids)

    assert toys.calls == [tuple(ids)]


def test_batch_is_cut_where_its_payloads_are_too_large_for_one_transaction(alias: str, toys: Toys) -> None:
    size = len(get(alias, row(alias, event_type=BULK)).payload)
    consumer = factories.consumer(alias, toys, batch_bytes=3 * size)
    ids = published(alias, 8, event_type=BULK, key=str)

    deliver(alias, consumer, ids)

    assert toys.calls == [tuple(ids[at : at + 3]) for at in range(0, 8, 3)]
    assert effect_ids(alias) == ids


def test_lengths_are_read_before_payloads(alias: str, toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve large payloads, three to a transaction, and small ones between them: each large one is fetched once."""
    consumer = factories.consumer(alias, toys, batch_bytes=3 * 20_000)
    large = {"key": "k", "number": 1, "text": "x" * 19_000}
    ids = [
        row(alias, status=Status.PUBLISHED, event_type=BULK, key=str(n), payload=None if n % 3 else large)
        for n in range(36)
    ]
    statements = note_large_texts(monkeypatch, 19_000)

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert len(toys.calls) == 4
    assert sum(statements) == 12
    assert max(statements) == 3


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statements_of_a_batch_do_not_depend_on_its_size(alias: str, consumer: Consumer, size: int) -> None:
    ids = published(alias, size, event_type=BULK, key=lambda number: f"key-{number % 5}")
    records = records_of(alias, ids)

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    statements = [query["sql"] for query in captured if query["sql"].split()[0] not in {"BEGIN", "COMMIT"}]
    # lock, look for predecessors, a savepoint, the handler's own, the savepoint's release, mark
    assert len(statements) == 6, statements
    assert len(captured) - len(statements) <= 2, "one transaction"
    assert effect_ids(alias) == ids


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statements_of_a_batch_that_waits_do_not_depend_on_its_size(alias: str, consumer: Consumer, size: int) -> None:
    row(alias, due_in=HOUR, retry_count=1)
    records = records_of(alias, published(alias, size))

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    statements = [query["sql"] for query in captured if query["sql"].split()[0] not in {"BEGIN", "COMMIT"}]
    # lock, look for predecessors, read the one found, ask the clock, put back; to note the key: count, write, sum
    assert len(statements) == 8, statements
    assert consumer.totals.waited == size


class _Model:
    """What a consumer does, event by event and without a database."""

    def __init__(self, events: dict[int, SimpleNamespace]) -> None:
        self.events = events
        self.effects: list[int] = []

    def handle(self, row_id: int) -> None:
        event = self.events[row_id]
        if event.status not in {"pending", "published"} or (event.status == "pending" and not event.due):
            return
        if any(self._blocks(other, event) for other in self.events.values()):
            event.status, event.due = "pending", False
        elif event.unreadable:
            event.status, event.parks = "dead", event.event_type.startswith("toy.parked")
        elif event.retry_count < event.failures:
            event.retry_count += 1
            if event.discards or event.retry_count >= event.max_retry:
                event.status, event.parks = "dead", event.event_type.startswith("toy.parked")
            else:
                event.status, event.due = "pending", False
        else:
            event.status = "consumed"
            self.effects.append(row_id)

    @staticmethod
    def _blocks(other: SimpleNamespace, event: SimpleNamespace) -> bool:
        unfinished = other.status in {"pending", "published"} or (other.status == "dead" and other.parks)
        return other.key == event.key and other.id < event.id and unfinished


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_large_batch_of_one_key_in_which_every_event_dies(alias: str, toys: Toys, consumer: Consumer) -> None:
    """Each lets the next one go on, which fails by itself: neither the stack nor the work grows with each of them."""
    ids = published(alias, 300, event_type=BULK)
    for row_id in ids:
        toys.fail(row_id, Discard("no"))
    records = records_of(alias, ids)

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    assert statuses(alias) == dict.fromkeys(ids, "dead")
    lists = [re.search(r"WHERE id IN \(([\d, ]+)\)", query["sql"]) for query in captured if _is_lock(query["sql"])]
    locked = sum(len(ids_of[1].split(",")) for ids_of in lists if ids_of)
    assert locked < 300 * 25, "each as often as the logarithm of their number says, twice over"


def _is_lock(statement: str) -> bool:
    return statement.startswith("SELECT id, event_type") and "replay_count, max_retry" in statement


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_batch_with_one_bad_event_locks_and_marks_the_others_once(
    alias: str, toys: Toys, consumer: Consumer, event_type: str
) -> None:
    """It fails, it is done again without the bad one, and that one alone: so it costs less than two good ones."""
    ids = published(alias, 64, key=lambda number: f"key-{number}", event_type=event_type)
    bad = ids[37]
    toys.fail(bad, ValueError("no"))
    records = records_of(alias, ids)

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    statements = [query["sql"] for query in captured]
    locks = [each for each in statements if _is_lock(each)]
    marks = [each for each in statements if each.startswith("UPDATE") and "consumed_at = " in each]
    assert (len(locks), len(marks)) == (3, 1)
    assert effect_ids(alias) == [each for each in ids if each != bad]
    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {bad: "pending"}


@pytest.mark.parametrize("seed", range(12))
def test_batches_give_what_event_by_event_would_have_given(alias: str, toys: Toys, seed: int) -> None:
    import random

    chance = random.Random(seed)
    consumer = factories.consumer(alias, toys, batch_bytes=chance.choice([300, 2000, 10**6]))
    model = _Model({})
    for _ in range(24):
        event = SimpleNamespace(
            key=chance.choice("abcd"),
            event_type=chance.choice([*HANDLED, BULK, BULK]),
            status="published",
            due=True,
            retry_count=0,
            max_retry=chance.randint(1, 3),
            failures=chance.choice([0, 0, 0, 0, 1, 2, 9]),
            discards=chance.random() < 0.2,
            unreadable=chance.random() < 0.1,
            parks=False,
        )
        event.id = row(
            alias,
            key=event.key,
            event_type=event.event_type,
            status=event.status,
            max_retry=event.max_retry,
            version="v9" if event.unreadable else "v2",
        )
        model.events[event.id] = event
        if event.failures:
            error: Exception = Discard("no") if event.discards else ValueError("no")
            toys.fail(event.id, error, times=event.failures)

    for _ in range(8):
        # As the relay sends: what is due in id order, over some partitions' worth of batches, some of it twice.
        batch = sorted(chance.choices(list(model.events), k=chance.randint(1, 40)))
        consumer.handle(records_of(alias, batch))
        for row_id in batch:
            model.handle(row_id)

        found = {
            each.id: (each.status, each.retry_count, each.parks_key)
            for each in AgentOutboxMessage.objects.using(alias).order_by("id")
        }
        assert found == {each.id: (each.status, each.retry_count, each.parks) for each in model.events.values()}
        for key in "abcd":
            assert effect_ids(alias, key=key) == [each for each in model.effects if model.events[each].key == key]
        make_due(alias)
        for event in model.events.values():
            event.due = True
