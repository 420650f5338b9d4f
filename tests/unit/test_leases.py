"""Equal shares without a coordinator: each worker reckons for itself, and together it comes out even."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.coordination.leases import fair_share, new_worker_id
from outbox.fields import SHARD_COUNT

workers = st.sets(st.text("abcdef:-0123", min_size=1, max_size=6), min_size=1, max_size=40)


@given(workers, st.integers(min_value=0, max_value=64))
def test_shares_are_equal_and_sum_up_to_all_shards(alive: set[str], shards: int) -> None:
    shares = [fair_share(worker, sorted(alive), shards) for worker in alive]

    assert sum(shares) == shards
    assert max(shares) - min(shares) <= 1


@given(workers, st.text("xyz", min_size=1, max_size=3))
def test_worker_that_does_not_see_itself_yet_counts_itself(alive: set[str], newcomer: str) -> None:
    assert fair_share(newcomer, sorted(alive)) == fair_share(newcomer, sorted({*alive, newcomer}))


@given(workers)
def test_share_does_not_depend_on_the_order_in_which_others_are_listed(alive: set[str]) -> None:
    worker = min(alive)
    assert fair_share(worker, sorted(alive)) == fair_share(worker, sorted(alive, reverse=True))


def test_one_worker_has_everything() -> None:
    assert fair_share("a", ["a"]) == SHARD_COUNT
    assert fair_share("a", []) == SHARD_COUNT


def test_more_workers_than_shards_leaves_some_in_reserve() -> None:
    alive = [f"worker-{number:02}" for number in range(SHARD_COUNT + 3)]
    assert [fair_share(worker, alive) for worker in alive] == [1] * SHARD_COUNT + [0] * 3


def test_worker_ids_differ_and_fit_their_column() -> None:
    ids = {new_worker_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) <= 64 for each in ids)
