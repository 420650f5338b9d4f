"""What the relay asks of the repository, on every database: claim, mark published, redeliver."""

from __future__ import annotations

from datetime import timedelta

import pytest

from outbox.fields import SHARD_COUNT
from outbox.lifecycle import Status
from outbox.storage.dialects import from_db
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Marked
from tests import factories
from tests.factories import database_now, get, row, rows
from tests.repositories import (
    FAILURE,
    UNLIMITED,
    claim_ids,
    locked,
    new_row,
    note_large_texts,
    published_row,
    stale,
)
from tests.toys import NOTE
from tests.transactions import held_elsewhere
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


# --- claim -------------------------------------------------------------------------------------------------------


def test_claim_returns_due_rows_in_the_order_of_their_ids(alias: str, repository: OutboxRepository) -> None:
    first, second, third = row(alias), row(alias, due_in=-HOUR), row(alias, due_in=-2 * HOUR)

    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    assert [due.id for due in claim.rows] == [first, second, third]
    assert claim.rows[0].event_type == NOTE
    assert claim.rows[0].payload == get(alias, first).payload.encode()


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


def test_claim_is_cut_where_its_payloads_are_too_large_together(
    alias: str, repository: OutboxRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"text": "x" * 1000}
    ids = [row(alias, key=str(n), payload=None if n % 2 else large) for n in range(10)]
    statements = note_large_texts(monkeypatch, 1000)

    claims, after = [], None
    while claims == [] or after is not None:
        claims.append(repository.claim(shards=None, limit=20, max_length=UNLIMITED, max_bytes=2500, after=after))
        after = claims[-1].last if claims[-1].is_cut else None

    assert [due.id for claim in claims for due in claim.rows] == ids
    assert [due.payload for claim in claims for due in claim.rows] == [
        get(alias, each).payload.encode() for each in ids
    ]
    assert [claim.is_cut for claim in claims] == [True, True, False]
    assert (sum(statements), max(statements)) == (5, 2)


def test_claim_holds_a_payload_that_is_too_large_by_itself(alias: str, repository: OutboxRepository) -> None:
    ids = [row(alias, payload={"text": "x" * 1000}) for _ in range(2)]

    claim = repository.claim(shards=None, limit=20, max_length=UNLIMITED, max_bytes=10)

    assert [(due.id, due.payload) for due in claim.rows] == [(ids[0], get(alias, ids[0]).payload.encode())]
    assert claim.is_cut


def test_payload_that_stays_in_its_row_takes_no_room(alias: str, repository: OutboxRepository) -> None:
    ids = [row(alias, payload={"text": "x" * 1000}) for _ in range(9)]

    claim = repository.claim(shards=None, limit=20, max_length=500, max_bytes=600)

    assert [(due.id, due.payload) for due in claim.rows] == [(each, None) for each in ids]
    assert not claim.is_cut


def test_claim_takes_own_rows_whose_type_is_like_a_foreign_one(alias: str) -> None:
    """A collation that ignores case or blanks at the end takes them for one."""
    own = [row(alias, event_type=each) for each in ("toy.note", "toy.note ", "Toy.note")]
    row(alias, event_type="TOY.NOTE")

    assert claim_ids(factories.repository(foreign_types=("TOY.NOTE",))) == own


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

    assert claimed == {short: b"x" * 100, long: None}
    assert repository.payload_of(long) == b"x" * 101


def test_length_of_a_payload_is_in_bytes(alias: str, repository: OutboxRepository) -> None:
    """Brokers limit bytes: a text of 100 characters may be 300 bytes long."""
    stored = "会" * 100
    row_id = row(alias, stored=stored, status=Status.PENDING)

    assert repository.claim(shards=None, limit=10, max_length=299).rows[0].payload is None
    assert repository.claim(shards=None, limit=10, max_length=300).rows[0].payload == stored.encode()
    assert locked(repository, row_id)[0].payload_length == 300


def test_payload_of_a_row_that_is_gone_is_empty(repository: OutboxRepository) -> None:
    assert repository.payload_of(4711) == b""


def test_payloads_come_as_bytes_however_they_come(alias: str, repository: OutboxRepository) -> None:
    """As a text, one character outside of the BMP has all others take 4 bytes."""
    stored = "x" * 1_000 + "😀é"
    row_id = row(alias, stored=stored, status=Status.PENDING)
    [claimed] = repository.claim(shards=None, limit=1, max_length=UNLIMITED).rows
    [long] = repository.claim(shards=None, limit=1_000, max_length=2_000, max_bytes=2_000).rows
    assert claimed.payload == long.payload == locked(repository, row_id)[0].payload == stored.encode()
    assert repository.payloads_of([row_id]) == {row_id: stored.encode()}


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


@pytest.mark.parametrize("way", ["woken", "lost", "forgiven", "replayed", "redelivered"])
def test_mark_published_leaves_alone_what_was_put_back_at_the_moment_of_the_claim(
    alias: str, repository: OutboxRepository, way: str
) -> None:
    """As a column of three digits has it, in a table that is shared, for all that happens within a thousandth."""
    row_id = row(alias)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    match way:
        case "woken":
            repository.wait([row_id], until=repository.now() + MINUTE)
            assert repository.release({"k": 0}) == 1
        case "lost":
            factories.change(alias, row_id, status=Status.PUBLISHED)
            assert repository.redeliver_lost([row_id]) == 1
        case "forgiven":
            assert repository.forget_interruptions(*locked(repository, row_id))
        case "replayed":
            repository.bury(row_id, failure=FAILURE, parks_key=False)
            assert repository.replay([row_id]) == 1
        case "redelivered":
            factories.change(alias, row_id, status=Status.PUBLISHED)
            before = repository.now() + MINUTE
            assert repository.redeliver(shards=None, published_before=before, limit=10) == 1
    factories.change(alias, row_id, next_retry_at=from_db(claim.claimed_at), updated_at=from_db(claim.claimed_at))

    assert repository.mark_published([row_id], claimed_at=claim.claimed_at, redeliver_after=HOUR) == Marked(0, [])
    assert get(alias, row_id).status == Status.PENDING
    again = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    assert again.counts == {row_id: (2 if way == "woken" else 1, 0)}
    marked = repository.mark_published([row_id], claimed_at=again.claimed_at, redeliver_after=HOUR, counts=again.counts)
    assert marked.count == 1


def test_mark_published_leaves_alone_what_other_software_put_back_at_once(
    alias: str, repository: OutboxRepository
) -> None:
    """It counts the attempt, and states no time: the row is due."""
    retried, also_retried, untouched = rows(alias, 3)
    factories.change(alias, also_retried, retry_count=4)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    factories.change(alias, [retried], retry_count=1, next_retry_at=None)
    factories.change(alias, [also_retried], retry_count=5, next_retry_at=None)

    ids = [retried, also_retried, untouched]
    marked = repository.mark_published(ids, claimed_at=claim.claimed_at, redeliver_after=HOUR, counts=claim.counts)

    assert claim.counts == {also_retried: (0, 4)}
    assert marked == Marked(1, [])
    assert factories.statuses(alias) == {retried: "pending", also_retried: "pending", untouched: "published"}


def test_mark_published_takes_rows_that_were_put_back_before_the_claim(
    alias: str, repository: OutboxRepository
) -> None:
    first, second, third, never = rows(alias, 4)
    for row_id, times in ((first, 1), (second, 2), (third, 2)):
        for _ in range(times):
            repository.wait([row_id], until=repository.now() - HOUR)
    repository.retry(*locked(repository, third), due_at=repository.now() - HOUR, failure=FAILURE)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    marked = repository.mark_published(
        [first, second, third, never], claimed_at=claim.claimed_at, redeliver_after=HOUR, counts=claim.counts
    )

    assert claim.counts == {first: (1, 0), second: (2, 0), third: (3, 1)}
    assert marked == Marked(4, [])


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


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
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


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_relay_that_buries_waits_for_nobody(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)

    def bury() -> int:
        return repository.bury_refused(row_id, failure=FAILURE, parks_key=False, claimed_at=claim.claimed_at)

    with held_elsewhere(alias, lambda: repository.lock([row_id], max_length=UNLIMITED)):
        assert bury() == 0

    assert bury() == 1


def test_late_refusal_leaves_alone_what_was_mended_since(alias: str, repository: OutboxRepository) -> None:
    """Two relays were told that the broker refuses it; a person mended it before the second one wrote that down."""
    row_id = row(alias)
    claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
    repository.bury(row_id, failure=FAILURE, parks_key=False)
    repository.edit(row_id, payload=b"{}")
    wait_until(lambda: repository.now() > from_db(claim.claimed_at))  # SQLite's clock has milliseconds
    repository.replay([row_id])

    assert not repository.bury_refused(row_id, failure=FAILURE, parks_key=False, claimed_at=claim.claimed_at)
    assert get(alias, row_id).status == Status.PENDING


# --- redeliver ---------------------------------------------------------------------------------------------------


def test_what_is_published_for_too_long_is_due_again(alias: str, repository: OutboxRepository) -> None:
    stuck = published_row(alias, ago=HOUR)
    fresh = published_row(alias, ago=SECOND)
    promised_later = published_row(alias, ago=HOUR, due_in=MINUTE)

    count = repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10)

    assert count == 1
    assert factories.statuses(alias) == {stuck: "pending", fresh: "published", promised_later: "published"}
    assert get(alias, stuck).retry_count == 0
    assert claim_ids(repository) == [stuck]


def test_redelivery_goes_by_the_last_change_where_other_software_left_published_at_empty(
    alias: str, repository: OutboxRepository
) -> None:
    old = published_row(alias, ago=HOUR, published_at=None, updated_at=database_now(alias) - HOUR)
    published_row(alias, ago=HOUR, published_at=None, updated_at=database_now(alias))

    repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10)

    assert claim_ids(repository) == [old]


def test_claim_tells_how_long_a_redelivered_row_was_published(alias: str, repository: OutboxRepository) -> None:
    stuck, undated = published_row(alias, ago=HOUR), published_row(alias, ago=HOUR, published_at=None)
    factories.change(alias, undated, updated_at=database_now(alias) - HOUR)

    assert repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10) == 2

    waited = {due.id: due.published_for for due in repository.claim(shards=None, limit=9, max_length=0).rows}
    assert waited[undated] is None
    assert HOUR - MINUTE < (waited[stuck] or HOUR) < HOUR


def test_only_what_was_stuck_is_known_for_redelivered(alias: str, repository: OutboxRepository) -> None:
    """What a consumer had in hand, or sends again as lost, is not what others take: it waits no longer than usual."""
    ids = [published_row(alias, ago=HOUR) for _ in range(6)]
    lost, waited, retried, interrupted, replayed, woken = ids
    repository.redeliver_lost([lost])
    repository.wait([waited], until=repository.now())
    repository.retry(*locked(repository, retried), due_at=repository.now(), failure=FAILURE)
    repository.interrupt(*locked(repository, interrupted), due_at=repository.now())
    repository.bury(replayed, failure=FAILURE, parks_key=False)
    repository.replay([replayed])
    repository.wait([woken], until=repository.now() + HOUR)
    repository.release({"k": 0})

    claim = repository.claim(shards=None, limit=9, max_length=0)

    assert {due.id: due.published_for for due in claim.rows} == dict.fromkeys(ids)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_what_a_consumer_holds_is_not_stuck(alias: str, repository: OutboxRepository) -> None:
    handled, stuck = published_row(alias, ago=HOUR), published_row(alias, ago=HOUR)

    with held_elsewhere(alias, lambda: repository.lock([handled], max_length=UNLIMITED)):
        assert repository.redeliver(shards=None, published_before=repository.now() - MINUTE, limit=10) == 1

    assert factories.statuses(alias) == {handled: "published", stuck: "pending"}


def test_redelivery_keeps_to_limit_shards_and_own_types(alias: str) -> None:
    ids = [published_row(alias, ago=HOUR, key=f"key-{number}") for number in range(6)]
    foreign = published_row(alias, ago=HOUR, event_type="memory.extract.requested")
    repository = factories.repository(foreign_types=("memory.extract.requested",))
    before = repository.now()

    assert repository.redeliver(shards=set(), published_before=before, limit=10) == 0
    assert repository.redeliver(shards=None, published_before=before, limit=4) == 4
    assert repository.redeliver(shards=range(SHARD_COUNT), published_before=before, limit=4) == 2
    assert repository.redeliver(shards=None, published_before=before, limit=4) == 0
    assert claim_ids(repository) == ids
    assert get(alias, foreign).status == Status.PUBLISHED
