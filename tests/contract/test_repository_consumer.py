"""What the consumer asks of the repository, on every database: lock, find blockers, note what became of an event."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from agent_events.agent.models import AgentOutboxMessage
from outbox import lifecycle
from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Failure, Predecessors
from tests import factories
from tests.factories import change, database_now, get, row, rows
from tests.repositories import FAILURE, UNLIMITED, blockers_of, columns_of, locked, stale
from tests.toys import BULK, PARKED
from tests.transactions import OtherTransaction

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


# --- lock --------------------------------------------------------------------------------------------------------


def test_lock_returns_what_exists_in_the_order_of_ids(alias: str, repository: OutboxRepository) -> None:
    first, second = rows(alias, 2, retry_count=3, max_retry=9, traceparent="00-aa")

    found = locked(repository, second, 10**12, first)

    assert [each.id for each in found] == [first, second]
    assert (found[0].retry_count, found[0].max_retry, found[0].traceparent) == (3, 9, "00-aa")
    assert found[0].payload == get(alias, first).payload.encode()
    assert found[0].payload_length == len(get(alias, first).payload)
    assert locked(repository) == []


def test_lock_says_whether_a_row_is_due(alias: str, repository: OutboxRepository) -> None:
    now, later, undated = row(alias), row(alias, due_in=HOUR), row(alias, next_retry_at=None)

    assert {each.id: each.is_due for each in locked(repository, now, later, undated)} == {
        now: True,
        later: False,
        undated: True,
    }


def test_lock_leaves_long_and_finished_payloads_in_their_rows(alias: str, repository: OutboxRepository) -> None:
    long = row(alias, stored="x" * 101)
    finished = [row(alias, stored="x" * 10, status=status) for status in (Status.CONSUMED, Status.DEAD)]

    with transaction.atomic(using=alias):
        found = {each.id: each for each in repository.lock([long, *finished], max_length=100)}

    assert (found[long].payload, found[long].payload_length) == (None, 101)
    assert all((found[each].payload, found[each].payload_length) == (None, 0) for each in finished)


def test_changed_rows_are_seen_to_be_changed(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias)
    change(alias, row_id, event_type=BULK)

    assert locked(repository, row_id)[0].event_type == BULK


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_second_transaction_passes_over_the_rows_of_the_first_and_finds_that_they_exist(
    alias: str, repository: OutboxRepository
) -> None:
    ids = rows(alias, 3, status=Status.PUBLISHED)
    found: list[list[int]] = []

    def look() -> None:
        found.append([each.id for each in repository.lock(ids, max_length=UNLIMITED)])
        found.append(sorted(repository.existing([*ids, ids[-1] + 1])))

    with transaction.atomic(using=alias):
        repository.lock(ids[:2], max_length=UNLIMITED)
        other = OtherTransaction(alias, look)
        other.start()
        other.result()

    assert found == [ids[2:], ids]


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_transactions_that_name_rows_in_different_orders_share_them_without_a_deadlock(
    alias: str, repository: OutboxRepository
) -> None:
    ids = rows(alias, 50, status=Status.PUBLISHED)
    workers = [
        OtherTransaction(alias, lambda order=order: repository.lock(order, max_length=UNLIMITED))
        for order in (ids, ids[::-1], ids[::2] + ids[1::2], ids[25:] + ids[:25])
        for _ in range(5)
    ]
    for worker in workers:
        worker.start()

    assert all(each.id in ids for worker in workers for each in worker.result())


# --- blockers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", lifecycle.UNFINISHED)
def test_unfinished_predecessor_blocks(alias: str, repository: OutboxRepository, status: Status) -> None:
    first, second = row(alias, status=status), row(alias, status=Status.PUBLISHED)

    assert blockers_of(repository, second) == {"k": first}


@pytest.mark.parametrize("status", [Status.CONSUMED, Status.DEAD])
def test_finished_predecessor_does_not_block(alias: str, repository: OutboxRepository, status: Status) -> None:
    row(alias, status=status)

    assert blockers_of(repository, row(alias)) == {}


def test_dead_predecessor_that_parks_its_key_blocks(alias: str, repository: OutboxRepository) -> None:
    parked = row(alias, event_type=PARKED)
    repository.bury(parked, failure=FAILURE, parks_key=True)
    second = row(alias)

    assert blockers_of(repository, second) == {"k": parked}
    assert repository.predecessors(locked(repository, second)).blockers["k"].due_at is None


def test_the_oldest_unfinished_blocks(alias: str, repository: OutboxRepository) -> None:
    parked = row(alias, status=Status.DEAD, parks_key=True)
    row(alias)

    assert blockers_of(repository, row(alias)) == {"k": parked}


def test_rows_in_hand_do_not_block_each_other_but_what_lies_between_does(
    alias: str, repository: OutboxRepository
) -> None:
    first, between, third = rows(alias, 3, status=Status.PUBLISHED)

    assert blockers_of(repository, first, between, third) == {}
    assert blockers_of(repository, first, third) == {"k": between}
    assert blockers_of(repository, first) == {}, "a later row blocks nobody"


def test_each_key_has_its_own_blocker(alias: str, repository: OutboxRepository) -> None:
    ids = rows(alias, 4, key=lambda number: f"key-{number % 2}")
    free = row(alias, key="free")

    assert blockers_of(repository, ids[2], ids[3], free) == {"key-0": ids[0], "key-1": ids[1]}
    assert repository.predecessors([]) == Predecessors()


def test_keys_that_differ_in_case_only_are_two_keys(alias: str, repository: OutboxRepository) -> None:
    row(alias, key="Conversation-1")
    row(alias, key="cönversation-1")

    assert blockers_of(repository, row(alias, key="conversation-1")) == {}


def test_predecessor_of_a_foreign_type_does_not_block(alias: str) -> None:
    repository = factories.repository(foreign_types=("memory.extract.requested",))
    row(alias, event_type="memory.extract.requested")
    own = row(alias)
    last = row(alias)

    assert blockers_of(repository, own) == {}
    assert blockers_of(repository, last) == {"k": own}


def test_blocker_is_found_across_a_large_gap_of_ids(alias: str, repository: OutboxRepository) -> None:
    first = row(alias)
    far = row(alias, id=first + 3 * 10**12)

    assert blockers_of(repository, far) == {"k": first}
    AgentOutboxMessage.objects.using(alias).filter(pk=far).delete()


def test_blocker_says_when_it_comes_again(alias: str, repository: OutboxRepository) -> None:
    now = database_now(alias)
    row(alias, key="backing-off", next_retry_at=now + HOUR, updated_at=now - MINUTE)
    row(alias, key="on-its-way", status=Status.PUBLISHED, next_retry_at=now + HOUR, updated_at=now - MINUTE)
    row(alias, key="undated", next_retry_at=None, updated_at=now - MINUTE)
    successors = [row(alias, key=key) for key in ("backing-off", "on-its-way", "undated")]

    found = repository.predecessors(locked(repository, *successors)).blockers

    assert abs(found["backing-off"].due_at - now - HOUR) < SECOND
    assert found["on-its-way"].due_at is None
    assert found["undated"].due_at is None
    assert all(abs(blocker.unchanged_for - MINUTE) < MINUTE / 2 for blocker in found.values())


# --- consumer ----------------------------------------------------------------------------------------------------


def test_mark_consumed_notes_when(alias: str, repository: OutboxRepository) -> None:
    earlier = database_now(alias) - HOUR
    overtaken, marked = row(alias), row(alias, status=Status.PUBLISHED, published_at=earlier)

    assert repository.mark_consumed([overtaken, marked]) == 2

    assert get(alias, marked).published_at == earlier
    assert abs(get(alias, overtaken).published_at - database_now(alias)) < MINUTE
    assert abs(get(alias, marked).consumed_at - database_now(alias)) < MINUTE


def test_mark_consumed_says_how_many_it_found_unfinished(alias: str, repository: OutboxRepository) -> None:
    ids = [row(alias, status=status) for status in Status]

    assert repository.mark_consumed([*ids, 10**12]) == 2


def test_waiting_costs_no_attempt(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED, retry_count=2, last_error="earlier")
    until = database_now(alias) + MINUTE

    assert repository.wait([row_id], until=until) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.last_error) == ("pending", 2, "earlier")
    assert abs(found.next_retry_at - until) < SECOND


def test_retry_notes_the_attempt_and_its_reason(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED)
    due_at = database_now(alias) + MINUTE

    assert repository.retry(locked(repository, row_id)[0], due_at=due_at, failure=FAILURE) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.last_error) == ("pending", 1, "ValueError: no")
    assert (found.error_class, found.traceback) == ("ValueError", "Traceback: no")
    assert abs(found.next_retry_at - due_at) < SECOND


def test_rows_can_wait_for_different_times_in_one_statement(alias: str, repository: OutboxRepository) -> None:
    first, second, third = rows(alias, 3, status=Status.PUBLISHED)
    now = repository.now()
    with CaptureQueriesContext(connections[alias]) as captured:
        assert repository.wait_each({now + MINUTE: [first, third], now + HOUR: [second]}) == 3

    assert len(captured) == 1
    assert [get(alias, each).next_retry_at - now for each in (first, second, third)] == [MINUTE, HOUR, MINUTE]


def test_retry_by_old_knowledge_changes_nothing(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED)
    [known] = locked(repository, row_id)
    repository.retry(known, due_at=repository.now() + MINUTE, failure=FAILURE)
    before = columns_of(alias, row_id)

    assert repository.retry(known, due_at=repository.now() + HOUR, failure=Failure("again")) == 0

    assert columns_of(alias, row_id) == before


def test_bury_notes_reason_time_and_attempts(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED, retry_count=19)

    assert repository.bury_failed(stale(row_id, retry_count=19), failure=FAILURE, parks_key=True) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.parks_key) == ("dead", 20, True)
    assert (found.last_error, found.error_class, found.traceback) == ("ValueError: no", "ValueError", "Traceback: no")
    assert abs(found.dead_at - database_now(alias)) < MINUTE
    assert abs(found.next_retry_at - database_now(alias)) < MINUTE, "dead rows are listed by when they died"


def test_late_burial_leaves_alone_what_was_replayed_since(alias: str, repository: OutboxRepository) -> None:
    """Two consumers saw the last attempt fail; a person replayed the event before the second one wrote that down."""
    row_id = row(alias, status=Status.PUBLISHED, retry_count=19)
    [known] = locked(repository, row_id)
    repository.bury_failed(known, failure=FAILURE, parks_key=False)
    repository.replay([row_id])

    assert repository.bury_failed(known, failure=FAILURE, parks_key=False) == 0
    assert (get(alias, row_id).status, get(alias, row_id).retry_count) == (Status.PENDING, 0)


def test_late_note_leaves_alone_what_died_at_once_and_was_replayed_since(
    alias: str, repository: OutboxRepository
) -> None:
    """The event has as many attempts behind it as when it was locked: none. What tells them apart is the replay."""
    row_id = row(alias, status=Status.PUBLISHED)
    [known] = locked(repository, row_id)
    repository.bury(row_id, failure=FAILURE, parks_key=False)
    repository.replay([row_id])
    before = columns_of(alias, row_id)

    assert repository.retry(known, due_at=repository.now() + MINUTE, failure=FAILURE) == 0
    assert repository.bury_failed(known, failure=FAILURE, parks_key=False) == 0

    assert columns_of(alias, row_id) == before


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "会" * 5000, "🙂" * 5000, "a NUL \x00 in it", "a lone surrogate \udcff in it"],
    ids=["long", "long-and-wide", "long-and-wider", "nul", "surrogate"],
)
def test_any_reason_can_be_noted(alias: str, repository: OutboxRepository, text: str) -> None:
    """What an exception says is beyond our control, and no database may choke on it."""
    retried, buried = rows(alias, 2, status=Status.PUBLISHED)
    failure = Failure(text, "E" * 300, text)

    assert repository.retry(stale(retried), due_at=repository.now(), failure=failure) == 1
    assert repository.bury(buried, failure=failure, parks_key=False) == 1

    for row_id in (retried, buried):
        found = get(alias, row_id)
        assert found.last_error[:6] == text[:6]
        assert len(found.last_error) <= 2000
        assert len(found.error_class) == 200
        assert found.traceback[:6] == text[:6]
