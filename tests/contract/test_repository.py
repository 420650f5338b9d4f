"""The repository keeps the same contract on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import lifecycle
from outbox.envelope import encode_envelope
from outbox.fields import SHARD_COUNT
from outbox.lifecycle import Status
from outbox.repository import OutboxRepository
from outbox.rows import Failure, Locked, Marked, NewRow
from tests import factories
from tests.factories import change, database_now, get, row, rows
from tests.toys import BULK, NOTE, PARKED
from tests.transactions import OtherTransaction, held_elsewhere
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
FAILURE = Failure("ValueError: no", "ValueError", "Traceback: no")
UNLIMITED = 10**9


@pytest.fixture
def repository(alias: str) -> OutboxRepository:
    return factories.repository()


def claim_ids(repository: OutboxRepository, *, limit: int = 100, **claim: Any) -> list[int]:
    return [due.id for due in repository.claim(shards=None, limit=limit, max_length=UNLIMITED, **claim).rows]


def locked(repository: OutboxRepository, *ids: int) -> list[Locked]:
    """Return rows as their consumer locks them, the transaction over again."""
    with transaction.atomic(using=repository.route.database):
        return repository.lock(ids, max_length=UNLIMITED)


def stale(row_id: int, **columns: Any) -> Locked:
    """Return a row as somebody locked it once."""
    as_it_was: dict[str, Any] = {
        "id": row_id,
        "event_type": NOTE,
        "message_key": "k",
        "status": Status.PUBLISHED,
        "retry_count": 0,
        "max_retry": 20,
        "is_due": True,
        "traceparent": "",
        "payload": None,
        "payload_length": 0,
    }
    return Locked(**(as_it_was | columns))


# --- transitions -------------------------------------------------------------------------------------------------


def _mark_published(repository: OutboxRepository, row_id: int) -> int:
    return repository.mark_published([row_id], claimed_at=raw_now(repository), redeliver_after=HOUR).count


def _redeliver(repository: OutboxRepository, _row_id: int) -> int:
    return repository.redeliver(shards=None, published_before=repository.now() + HOUR, limit=10)


APPLY: dict[lifecycle.Transition, Callable[[OutboxRepository, int], int]] = {
    lifecycle.MARK_PUBLISHED: _mark_published,
    lifecycle.CONSUME: lambda repository, row_id: repository.mark_consumed([row_id]),
    lifecycle.RETRY: lambda repository, row_id: repository.retry(
        stale(row_id), due_at=repository.now() + HOUR, failure=FAILURE
    ),
    lifecycle.WAIT: lambda repository, row_id: repository.wait([row_id], until=repository.now() + HOUR),
    lifecycle.REDELIVER: _redeliver,
    lifecycle.BURY: lambda repository, row_id: repository.bury(row_id, failure=FAILURE, parks_key=False),
    lifecycle.REPLAY: lambda repository, row_id: repository.replay([row_id]),
    lifecycle.GIVE_UP: lambda repository, row_id: repository.give_up([row_id], by="ann", reason="too old"),
    lifecycle.EDIT: lambda repository, row_id: repository.edit(row_id, payload=b'{"payload": 2}'),
}


def raw_now(repository: OutboxRepository) -> Any:
    """Return the database's clock as a claim gives it."""
    from outbox.sql import dialect_of

    connection = connections[repository.route.database]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect_of(connection).now}", [])
        return cursor.fetchone()[0]


def columns_of(alias: str, row_id: int) -> dict[str, Any]:
    return AgentOutboxMessage.objects.using(alias).values().get(pk=row_id)


def test_every_transition_is_tested() -> None:
    assert set(APPLY) == set(lifecycle.TRANSITIONS)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("transition", lifecycle.TRANSITIONS, ids=lambda transition: transition.name)
def test_transition_is_applied_from_its_legal_states_only(
    alias: str, repository: OutboxRepository, transition: lifecycle.Transition, status: Status
) -> None:
    # Published long enough ago, and due, so that nothing but the status can be in the way.
    past = database_now(alias) - MINUTE
    row_id = row(alias, status=status, next_retry_at=past, published_at=past, updated_at=past)
    before = columns_of(alias, row_id)

    moved = APPLY[transition](repository, row_id)

    after = columns_of(alias, row_id)
    if status in transition.sources:
        assert moved == 1
        assert after["status"] == transition.target
        assert after["updated_at"] > before["updated_at"]
    else:
        assert moved == 0
        assert after == before


@pytest.mark.parametrize("transition", lifecycle.TRANSITIONS, ids=lambda transition: transition.name)
def test_transition_leaves_other_rows_alone(
    alias: str, repository: OutboxRepository, transition: lifecycle.Transition
) -> None:
    others = [row(alias, key=f"other-{status}", status=status, due_in=HOUR) for status in Status]
    before = [columns_of(alias, other) for other in others]
    past = database_now(alias) - MINUTE
    row_id = row(alias, status=transition.sources[0], next_retry_at=past, published_at=past)

    APPLY[transition](repository, row_id)

    assert [columns_of(alias, other) for other in others] == before


@pytest.mark.parametrize("move", ["mark_consumed", "replay"])
def test_moving_nothing_is_no_statement(
    alias: str, repository: OutboxRepository, move: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0, connection=connections[alias]):
        assert getattr(repository, move)([]) == 0


# --- the table ---------------------------------------------------------------------------------------------------


def test_row_of_other_software_with_the_shared_columns_only_is_valid(alias: str, repository: OutboxRepository) -> None:
    stored = encode_envelope(factories.envelope()).decode()
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload, status,"
            " retry_count, max_retry) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [NOTE, "agent", "smartflow.agent.outbox", "conversation-1", stored, "pending", 0, 20],
        )

    [claimed] = repository.claim(shards=None, limit=10, max_length=UNLIMITED).rows

    found = get(alias, claimed.id)
    assert claimed.payload == stored
    assert claimed.traceparent == ""
    assert 0 <= found.shard < SHARD_COUNT
    assert found.created_at is not None
    assert found.parks_key is False
    assert abs(found.created_at - database_now(alias)) < MINUTE


def test_row_with_every_shared_column_given_as_null_or_value_is_valid(alias: str, repository: OutboxRepository) -> None:
    now = database_now(alias).replace(tzinfo=None).isoformat(" ")
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload, status,"
            " retry_count, max_retry, next_retry_at, last_error, published_at, consumed_at, created_at, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, NULL, NULL, NULL, NULL, %s, %s)",
            [NOTE, "", "", "conversation-1", '{"payload": {}}', "pending", 0, 20, now, now],
        )

    [claimed] = repository.claim(shards=None, limit=10, max_length=UNLIMITED).rows

    assert claimed.message_key == "conversation-1"
    assert locked(repository, claimed.id)[0].is_due


def test_default_times_are_utc_whatever_the_time_zone_of_the_session(alias: str, repository: OutboxRepository) -> None:
    zones = {"mysql": "SET time_zone = '+09:00'", "postgresql": "SET TIME ZONE 'Asia/Tokyo'"}
    connection = connections[alias]
    with connection.cursor() as cursor:
        if connection.vendor in zones:
            cursor.execute(zones[connection.vendor])
        cursor.execute(
            "INSERT INTO agent_outbox_messages (event_type, message_key, payload) VALUES (%s, %s, %s)",
            [NOTE, "k", '{"payload": {}}'],
        )
    connection.close()  # and with it the session's time zone

    assert len(claim_ids(repository)) == 1
    assert abs(AgentOutboxMessage.objects.using(alias).get().next_retry_at - database_now(alias)) < MINUTE


def test_a_key_has_one_shard_and_keys_spread_over_shards(alias: str) -> None:
    rows(alias, 200, key=lambda number: f"conversation-{number % 100}")

    shards: dict[str, set[int]] = {}
    for key, shard in AgentOutboxMessage.objects.using(alias).values_list("message_key", "shard"):
        shards.setdefault(key, set()).add(shard)

    assert all(len(of_key) == 1 for of_key in shards.values())
    assert len(set.union(*shards.values())) > SHARD_COUNT / 2


@pytest.mark.parametrize("key", ["k", "", "x" * 128, "会话-1", "🙂", "O'Brien; --", "a\\b%s", "Ünïcode"])
def test_any_key_gets_a_shard_and_comes_back_as_it_was(alias: str, repository: OutboxRepository, key: str) -> None:
    row(alias, key=key)

    [claimed] = repository.claim(shards=range(SHARD_COUNT), limit=10, max_length=UNLIMITED).rows

    assert claimed.message_key == key


# --- insert ------------------------------------------------------------------------------------------------------


def new_row(number: int, **columns: Any) -> NewRow:
    values: dict[str, Any] = {
        "event_type": NOTE,
        "message_key": f"key-{number}",
        "payload": b'{"payload": {}}',
        "max_retry": 7,
        "traceparent": "00-aa-bb-01",
    }
    return NewRow(**(values | columns))


def test_insert_keeps_the_order_and_fills_in_the_route(alias: str, repository: OutboxRepository) -> None:
    assert repository.insert(new_row(number) for number in range(1200)) == 1200

    found = list(AgentOutboxMessage.objects.using(alias).order_by("id"))
    assert [each.message_key for each in found] == [f"key-{number}" for number in range(1200)]
    assert {(each.service_name, each.topic, each.max_retry, each.status) for each in found} == {
        ("agent", "smartflow.agent.outbox", 7, "pending")
    }
    assert found[0].traceparent == "00-aa-bb-01"


@pytest.mark.parametrize(("count", "statements"), [(0, 0), (1, 1), (500, 1), (501, 2)])
def test_insert_takes_one_statement_for_some_hundred_rows(
    alias: str, repository: OutboxRepository, django_assert_num_queries: Any, count: int, statements: int
) -> None:
    with django_assert_num_queries(statements, connection=connections[alias]):
        repository.insert([new_row(number) for number in range(count)])


def test_insert_cuts_statements_by_size(
    alias: str, repository: OutboxRepository, django_assert_num_queries: Any
) -> None:
    large = b'{"payload": "' + b"x" * 1_500_000 + b'"}'
    with django_assert_num_queries(2, connection=connections[alias]):
        repository.insert([new_row(number, payload=large) for number in range(4)])

    assert AgentOutboxMessage.objects.using(alias).count() == 4


# --- claim -------------------------------------------------------------------------------------------------------


def test_claim_returns_due_rows_in_the_order_of_their_ids(alias: str, repository: OutboxRepository) -> None:
    first, second, third = row(alias), row(alias, due_in=-HOUR), row(alias, due_in=-2 * HOUR)

    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert [due.id for due in claim.rows] == [first, second, third]
    assert claim.rows[0].event_type == NOTE
    assert claim.rows[0].payload == get(alias, first).payload


def test_claim_takes_the_longest_waiting_up_to_the_limit(alias: str, repository: OutboxRepository) -> None:
    young, old, oldest = row(alias, due_in=-SECOND), row(alias, due_in=-MINUTE), row(alias, due_in=-HOUR)

    assert claim_ids(repository, limit=2) == [old, oldest]
    assert claim_ids(repository, limit=3) == [young, old, oldest]


def test_claim_leaves_what_is_not_due_or_not_pending(alias: str, repository: OutboxRepository) -> None:
    due = row(alias)
    row(alias, due_in=HOUR)
    for status in set(Status) - {Status.PENDING}:
        row(alias, status=status)

    assert claim_ids(repository) == [due]


def test_claim_of_nothing_is_empty(repository: OutboxRepository) -> None:
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert claim.rows == []
    assert claim.last is None


def test_row_without_a_due_time_is_due(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, next_retry_at=None)

    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert [due.id for due in claim.rows] == [row_id]
    assert claim.last is None, "a claim cannot go on behind a row that has no place in the order of time"


def test_row_without_a_due_time_goes_before_a_backlog(alias: str, repository: OutboxRepository) -> None:
    rows(alias, 5, due_in=-HOUR)
    undated = rows(alias, 2, next_retry_at=None)

    assert claim_ids(repository, limit=2) == undated


def test_rows_without_a_due_time_are_reached_through_a_backlog(alias: str, repository: OutboxRepository) -> None:
    dated = rows(alias, 5)
    undated = rows(alias, 2, next_retry_at=None)
    reached: list[int] = []

    while claimed := repository.claim(shards=None, limit=2, max_length=UNLIMITED):
        if not claimed.rows:
            break
        ids = [due.id for due in claimed.rows]
        assert repository.mark_published(ids, claimed_at=claimed.claimed_at, redeliver_after=HOUR).count == len(ids)
        reached += ids

    assert sorted(reached) == dated + undated


@pytest.mark.parametrize("same_moment", [True, False])
def test_claims_that_go_on_behind_each_other_return_every_row_once(
    alias: str, repository: OutboxRepository, same_moment: bool
) -> None:
    if same_moment:
        repository.insert([new_row(number) for number in range(7)])
    else:
        rows(alias, 7)
    seen: list[int] = []
    after = None
    for _ in range(3):
        claim = repository.claim(shards=None, limit=3, max_length=UNLIMITED, after=after)
        seen += [due.id for due in claim.rows]
        after = claim.last

    assert seen == list(factories.statuses(alias))


def test_claim_goes_on_behind_a_moment_on_the_second(alias: str, repository: OutboxRepository) -> None:
    """A whole second is written without its fraction in places: it is the same moment all the same."""
    on_the_second = database_now(alias).replace(microsecond=0) - MINUTE
    ids = rows(alias, 4, next_retry_at=on_the_second)

    claim = repository.claim(shards=None, limit=2, max_length=UNLIMITED)

    assert claim_ids(repository, after=claim.last) == ids[2:]


def test_late_commit_behind_the_mark_is_found_from_the_oldest(alias: str, repository: OutboxRepository) -> None:
    first, second = rows(alias, 2)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    late = row(alias, due_in=-HOUR)

    assert claim_ids(repository, after=claim.last) == []
    assert claim_ids(repository) == [first, second, late]


def test_claim_leaves_foreign_types(alias: str) -> None:
    own = row(alias)
    row(alias, event_type="memory.extract.requested")

    assert claim_ids(factories.repository(foreign_types=("memory.extract.requested",))) == [own]
    assert len(claim_ids(factories.repository())) == 2


def test_shards_share_the_rows_without_overlap(alias: str, repository: OutboxRepository) -> None:
    ids = rows(alias, 40, key=lambda number: f"key-{number}")

    def claimed_in(*shards: int) -> list[int]:
        return [due.id for due in repository.claim(shards=set(shards), limit=100, max_length=UNLIMITED).rows]

    assert sorted(row_id for shard in range(SHARD_COUNT) for row_id in claimed_in(shard)) == ids
    assert claimed_in(*range(SHARD_COUNT)) == ids
    assert claimed_in() == []


def test_claim_leaves_a_long_payload_in_its_row(alias: str, repository: OutboxRepository) -> None:
    short, long = row(alias, stored="x" * 100), row(alias, stored="x" * 101)

    claimed = {due.id: due.payload for due in repository.claim(shards=None, limit=10, max_length=100).rows}

    assert claimed == {short: "x" * 100, long: None}
    assert repository.payload_of(long) == "x" * 101


def test_length_of_a_payload_is_in_bytes(alias: str, repository: OutboxRepository) -> None:
    """Brokers limit bytes: a text of 100 characters may be 300 bytes long."""
    row_id = row(alias, stored="会" * 100, status=Status.PENDING)

    assert repository.claim(shards=None, limit=10, max_length=299).rows[0].payload is None
    assert repository.claim(shards=None, limit=10, max_length=300).rows[0].payload == "会" * 100
    assert locked(repository, row_id)[0].payload_length == 300


def test_payload_of_a_row_that_is_gone_is_empty(repository: OutboxRepository) -> None:
    assert repository.payload_of(4711) == ""


# --- mark published ----------------------------------------------------------------------------------------------


def test_mark_published_notes_when_and_when_again(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert repository.mark_published([row_id], claimed_at=claim.claimed_at, redeliver_after=HOUR) == Marked(1, [])

    marked = get(alias, row_id)
    now = database_now(alias)
    assert marked.status == Status.PUBLISHED
    assert abs(marked.published_at - now) < MINUTE
    assert abs(marked.next_retry_at - now - HOUR) < MINUTE
    assert marked.retry_count == 0


def test_mark_published_leaves_alone_what_was_put_back_after_the_claim(
    alias: str, repository: OutboxRepository
) -> None:
    waiting, retried, untouched = rows(alias, 3)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    repository.wait([waiting], until=repository.now() + MINUTE)
    repository.retry(stale(retried), due_at=repository.now() + MINUTE, failure=FAILURE)

    ids = [waiting, retried, untouched]
    assert repository.mark_published(ids, claimed_at=claim.claimed_at, redeliver_after=HOUR) == Marked(1, [])

    assert factories.statuses(alias) == {waiting: "pending", retried: "pending", untouched: "published"}
    assert get(alias, waiting).next_retry_at < database_now(alias) + 2 * MINUTE


def test_mark_published_leaves_alone_what_its_consumer_finished_first(alias: str, repository: OutboxRepository) -> None:
    consumed, buried = rows(alias, 2)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    repository.mark_consumed([consumed])
    repository.bury(buried, failure=FAILURE, parks_key=False)

    assert repository.mark_published([consumed, buried], claimed_at=claim.claimed_at, redeliver_after=HOUR) == Marked(
        0, []
    )

    assert factories.statuses(alias) == {consumed: "consumed", buried: "dead"}


def test_mark_published_takes_a_row_without_a_due_time(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, next_retry_at=None)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert repository.mark_published([row_id], claimed_at=claim.claimed_at, redeliver_after=HOUR) == Marked(1, [])


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_mark_published_waits_for_nobody(alias: str, repository: OutboxRepository) -> None:
    """A consumer may have the record before its row is marked."""
    handled, put_back, free = rows(alias, 3)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    repository.wait([put_back], until=repository.now() + MINUTE)
    ids = [handled, put_back, free]

    with held_elsewhere(alias, lambda: repository.lock([handled, put_back], max_length=UNLIMITED)):
        marked = repository.mark_published(ids, claimed_at=claim.claimed_at, redeliver_after=HOUR)

    assert marked == Marked(1, held=[handled]), "what was put back is no longer as it was claimed"
    assert factories.statuses(alias) == {handled: "pending", put_back: "pending", free: "published"}


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_relay_that_buries_waits_for_nobody(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias)

    with held_elsewhere(alias, lambda: repository.lock([row_id], max_length=UNLIMITED)):
        assert repository.bury(row_id, failure=FAILURE, parks_key=False, skip_locked=True) == 0

    assert repository.bury(row_id, failure=FAILURE, parks_key=False, skip_locked=True) == 1


# --- redeliver ---------------------------------------------------------------------------------------------------


def published(alias: str, *, ago: timedelta, due_in: timedelta = -SECOND, **columns: Any) -> int:
    values = {"published_at": database_now(alias) - ago, "status": Status.PUBLISHED} | columns
    return row(alias, due_in=due_in, **values)


def test_what_is_published_for_too_long_is_due_again(alias: str, repository: OutboxRepository) -> None:
    stuck = published(alias, ago=HOUR)
    fresh = published(alias, ago=SECOND)
    promised_later = published(alias, ago=HOUR, due_in=MINUTE)

    count = repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10)

    assert count == 1
    assert factories.statuses(alias) == {stuck: "pending", fresh: "published", promised_later: "published"}
    assert get(alias, stuck).retry_count == 0
    assert claim_ids(repository) == [stuck]


def test_redelivery_goes_by_the_last_change_where_other_software_left_published_at_empty(
    alias: str, repository: OutboxRepository
) -> None:
    old = published(alias, ago=HOUR, published_at=None, updated_at=database_now(alias) - HOUR)
    published(alias, ago=HOUR, published_at=None, updated_at=database_now(alias))

    repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10)

    assert claim_ids(repository) == [old]


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_what_a_consumer_holds_is_not_stuck(alias: str, repository: OutboxRepository) -> None:
    handled, stuck = published(alias, ago=HOUR), published(alias, ago=HOUR)

    with held_elsewhere(alias, lambda: repository.lock([handled], max_length=UNLIMITED)):
        assert repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10) == 1

    assert factories.statuses(alias) == {handled: "published", stuck: "pending"}


def test_redelivery_keeps_to_limit_shards_and_own_types(alias: str) -> None:
    ids = [published(alias, ago=HOUR, key=f"key-{number}") for number in range(6)]
    foreign = published(alias, ago=HOUR, event_type="memory.extract.requested")
    repository = factories.repository(foreign_types=("memory.extract.requested",))
    before = repository.now()

    assert repository.redeliver(shards=set(), published_before=before, limit=10) == 0
    assert repository.redeliver(shards=None, published_before=before, limit=4) == 4
    assert repository.redeliver(shards=range(SHARD_COUNT), published_before=before, limit=4) == 2
    assert repository.redeliver(shards=None, published_before=before, limit=4) == 0
    assert claim_ids(repository) == ids
    assert get(alias, foreign).status == Status.PUBLISHED


# --- the table as a queue ----------------------------------------------------------------------------------------


def test_published_rows_are_a_queue_in_the_order_of_their_ids(alias: str) -> None:
    repository = factories.repository(foreign_types=("memory.extract.requested",))
    first = published(alias, ago=SECOND, key="a", due_in=HOUR)
    second = published(alias, ago=MINUTE, key="b", due_in=MINUTE)
    published(alias, ago=HOUR, event_type="memory.extract.requested")
    row(alias)

    assert repository.published(shards=None, limit=10) == [(first, NOTE, "a"), (second, NOTE, "b")]
    assert repository.published(shards=None, limit=1) == [(second, NOTE, "b")], "the longest waiting first"
    assert repository.published(shards=set(), limit=10) == []
    shard = get(alias, first).shard
    assert (first, NOTE, "a") in repository.published(shards={shard}, limit=10)
    assert (first, NOTE, "a") not in repository.published(shards=set(range(SHARD_COUNT)) - {shard}, limit=10)


# --- lock --------------------------------------------------------------------------------------------------------


def test_lock_returns_what_exists_in_the_order_of_ids(alias: str, repository: OutboxRepository) -> None:
    first, second = rows(alias, 2, retry_count=3, max_retry=9, traceparent="00-aa")

    found = locked(repository, second, 10**12, first)

    assert [each.id for each in found] == [first, second]
    assert (found[0].retry_count, found[0].max_retry, found[0].traceparent) == (3, 9, "00-aa")
    assert found[0].payload == get(alias, first).payload
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


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_second_transaction_waits_for_the_rows_of_the_first_and_sees_what_it_did(
    alias: str, repository: OutboxRepository
) -> None:
    ids = rows(alias, 3, status=Status.PUBLISHED)
    other = OtherTransaction(alias, lambda: repository.lock(ids, max_length=UNLIMITED))
    with transaction.atomic(using=alias):
        repository.lock(ids[:2], max_length=UNLIMITED)
        other.start()
        wait_until(other.is_waiting_for_a_lock)
        repository.mark_consumed(ids[:2])

    assert [each.status for each in other.result()] == ["consumed", "consumed", "published"]


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_transactions_that_name_rows_in_different_orders_do_not_deadlock(
    alias: str, repository: OutboxRepository
) -> None:
    ids = rows(alias, 50, status=Status.PUBLISHED)
    workers = [
        OtherTransaction(alias, lambda order=order: [repository.lock(order, max_length=UNLIMITED) for _ in range(1)])
        for order in (ids, ids[::-1], ids[::2] + ids[1::2], ids[25:] + ids[:25])
        for _ in range(5)
    ]
    for worker in workers:
        worker.start()

    assert all(len(worker.result()[0]) == 50 for worker in workers)


# --- blockers ----------------------------------------------------------------------------------------------------


def blockers_of(repository: OutboxRepository, *ids: int) -> dict[str, int]:
    return {key: blocker.id for key, blocker in repository.blockers(locked(repository, *ids)).items()}


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
    assert repository.blockers(locked(repository, second))["k"].due_at is None


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
    assert repository.blockers([]) == {}


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

    found = repository.blockers(locked(repository, *successors))

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


def test_retry_by_old_knowledge_changes_nothing(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED)
    [known] = locked(repository, row_id)
    repository.retry(known, due_at=repository.now() + MINUTE, failure=FAILURE)
    before = columns_of(alias, row_id)

    assert repository.retry(known, due_at=repository.now() + HOUR, failure=Failure("again")) == 0

    assert columns_of(alias, row_id) == before


def test_bury_notes_reason_time_and_attempts(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED, retry_count=19)

    assert repository.bury(row_id, failure=FAILURE, parks_key=True, failed_attempts=1) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.parks_key) == ("dead", 20, True)
    assert (found.last_error, found.error_class, found.traceback) == ("ValueError: no", "ValueError", "Traceback: no")
    assert abs(found.dead_at - database_now(alias)) < MINUTE
    assert abs(found.next_retry_at - database_now(alias)) < MINUTE, "dead rows are listed by when they died"


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


# --- operator ----------------------------------------------------------------------------------------------------


def test_replay_gives_a_row_all_its_attempts_again(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED, retry_count=5)
    repository.bury(row_id, failure=FAILURE, parks_key=True)
    repository.give_up([row_id], by="ann", reason="too old")

    assert repository.replay([row_id]) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.parks_key) == ("pending", 0, False)
    assert (found.dead_at, found.resolved_at, found.resolved_by, found.resolution) == (None, None, "", "")
    assert claim_ids(repository) == [row_id]


@pytest.mark.parametrize("decide", ["replay", "give_up"])
def test_a_decision_wakes_the_rows_that_wait_behind_it(alias: str, repository: OutboxRepository, decide: str) -> None:
    parked = row(alias, status=Status.DEAD, parks_key=True)
    waiting = row(alias, due_in=HOUR)
    backing_off = row(alias, due_in=HOUR, retry_count=1)
    of_another_key = row(alias, key="other", due_in=HOUR)

    if decide == "replay":
        repository.replay([parked])
    else:
        repository.give_up([parked], by="ann", reason="too old")

    due = [each.id for each in locked(repository, waiting, backing_off, of_another_key) if each.is_due]
    assert due == [waiting]


def test_a_decision_wakes_nobody_before_the_row(alias: str, repository: OutboxRepository) -> None:
    before = row(alias, due_in=HOUR)
    parked = row(alias, status=Status.DEAD, parks_key=True)

    repository.replay([parked])

    assert not locked(repository, before)[0].is_due


def test_giving_up_keeps_who_when_and_why_and_frees_the_key(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.DEAD, parks_key=True)

    assert repository.give_up([row_id], by="a" * 200, reason="w" * 600) == 1
    assert repository.give_up([row_id], by="bob", reason="again") == 0

    found = get(alias, row_id)
    assert (found.status, found.parks_key) == ("dead", False)
    assert (found.resolved_by, found.resolution) == ("a" * 150, "w" * 500)
    assert abs(found.resolved_at - database_now(alias)) < MINUTE
    assert blockers_of(repository, row(alias)) == {}


def test_edit_replaces_the_payload_of_a_dead_row(alias: str, repository: OutboxRepository) -> None:
    dead = row(alias, status=Status.DEAD)

    assert repository.edit(dead, payload='{"payload": "新"}'.encode()) == 1

    assert get(alias, dead).payload == '{"payload": "新"}'
    assert get(alias, dead).status == Status.DEAD


# --- prune -------------------------------------------------------------------------------------------------------


def test_prune_deletes_old_consumed_rows_only(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    gone = row(alias, status=Status.CONSUMED, consumed_at=old, created_at=old)
    kept = [row(alias, status=status, created_at=old) for status in set(Status) - {Status.CONSUMED}]
    kept.append(row(alias, status=Status.CONSUMED, consumed_at=database_now(alias), created_at=old))

    pruned = repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=100)

    assert pruned.deleted == 1
    assert sorted(factories.statuses(alias)) == sorted(kept)
    assert gone not in kept


def test_prune_goes_through_the_table_in_steps(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    rows(alias, 7, status=Status.CONSUMED, consumed_at=old, created_at=old)
    unfinished = row(alias, created_at=old)
    young = row(alias)
    after_id: int | None = 0
    deleted = steps = 0
    while after_id is not None:
        pruned = repository.prune(consumed_before=repository.now() - HOUR, after_id=after_id, limit=3)
        deleted, steps, after_id = deleted + pruned.deleted, steps + 1, pruned.last_id

    assert deleted == 7
    assert steps <= 4
    assert sorted(factories.statuses(alias)) == [unfinished, young]


def test_prune_ends_where_rows_are_young(alias: str, repository: OutboxRepository) -> None:
    rows(alias, 4)

    assert repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=2).last_id is None
    assert repository.prune(consumed_before=repository.now() - HOUR, after_id=10**12, limit=2).last_id is None


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_prune_passes_over_locked_rows(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    held, free = rows(alias, 2, status=Status.CONSUMED, consumed_at=old, created_at=old)
    with transaction.atomic(using=alias):
        repository.lock([held], max_length=UNLIMITED)
        pruner = OtherTransaction(
            alias, lambda: repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=10)
        )
        pruner.start()

        assert pruner.result().deleted == 1

    assert list(factories.statuses(alias)) == [held]
    assert free != held


def test_now_is_the_clock_of_the_database(alias: str, repository: OutboxRepository) -> None:
    before = database_now(alias)

    assert before <= repository.now() <= database_now(alias)
    assert repository.now().utcoffset() == timedelta(0)


def test_changed_rows_are_seen_to_be_changed(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias)
    change(alias, row_id, event_type=BULK)

    assert locked(repository, row_id)[0].event_type == BULK
