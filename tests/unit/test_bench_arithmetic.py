"""What `make bench` computes: the speed of the middle of a run, and rows that are filled in order."""

from __future__ import annotations

import pytest

from benchmarks.arithmetic import Step, middle, speed
from benchmarks.speed.plan import keys_of
from benchmarks.tables import numbers

STEADY: list[Step] = [(float(second), 500) for second in range(20)]


def test_speed_of_a_steady_run_is_that_of_its_middle() -> None:
    assert speed(middle(STEADY)) == speed(STEADY) == 500.0


def test_late_begin_and_slow_end_do_not_change_the_speed() -> None:
    """Two processes: one begins a second after the other, and one goes on alone at the end."""
    steps = [(0.0, 500), *((at + 1.0, events) for at, events in STEADY), (25.0, 500)]
    assert speed(steps) < 450
    assert speed(middle(steps)) == 500.0


def test_middle_leaves_out_a_tenth_of_the_events_on_either_side() -> None:
    assert middle(STEADY) == STEADY[1:18]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_steps_are_all_taken(count: int) -> None:
    assert middle(STEADY[:count]) == STEADY[:count]


@pytest.mark.parametrize(("events", "keys"), [(1, 1), (1_000, 200), (25_000, 5_000), (1_000_000, 5_000)])
def test_number_of_keys_grows_with_the_events_up_to_a_limit(events: int, keys: int) -> None:
    assert keys_of(events) == keys


@pytest.mark.parametrize(("first", "last", "places"), [(1, 1, 1), (1, 10, 1), (1, 11, 2), (50_001, 100_000, 5)])
def test_table_of_numbers_has_as_many_digits_as_it_needs(first: int, last: int, places: int) -> None:
    sql = numbers(first, last)
    assert sql.count("UNION ALL") == 9 * places
    assert f"SELECT {first} + " in sql
    assert f"LIMIT {last - first + 1})" in sql
