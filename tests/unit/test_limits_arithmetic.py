"""What `make limits` computes: a leak is seen, a process that keeps its size is not blamed, a speed is of the marks."""

from __future__ import annotations

import random

import pytest

from benchmarks.arithmetic import head, percentile, speed, tenths, usual_percentile
from benchmarks.limits.arithmetic import GROWTH_FLOOR_KIB, GROWTH_SHARE, Flatness, flatness, part, slope

WARM_KIB = 60_000.0
EVENTS = [5_000.0 * second for second in range(600)]
"""Ten minutes at full load, looked at every second."""


def judged(sizes: list[float]) -> Flatness:
    return flatness(EVENTS, sizes, share=GROWTH_SHARE, floor=GROWTH_FLOOR_KIB)


def leak(bytes_an_event: float) -> list[float]:
    return [WARM_KIB + events * bytes_an_event / 1024 for events in EVENTS]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    values = [float(number) for number in range(1, 101)]
    random.Random(7).shuffle(values)
    assert percentile(values, share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.0], 0.99) == 3.0


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_usual_percentile_is_not_moved_by_one_bad_window() -> None:
    quiet = [(number / 10, 2.0) for number in range(600)]
    bad_moment = [(at, 500.0 if 20 <= at < 30 else value) for at, value in quiet]
    assert usual_percentile(bad_moment, 0.99, window=10.0) == 2.0
    assert percentile([value for _, value in bad_moment], 0.99) == 500.0


def test_usual_percentile_is_moved_by_what_is_in_most_windows() -> None:
    values = [(number / 10, 50.0 if number % 20 == 0 else 2.0) for number in range(600)]
    assert usual_percentile(values, 0.99, window=10.0) == 50.0


def test_usual_percentile_leaves_out_a_window_that_was_only_begun() -> None:
    values = [(number / 10, 2.0) for number in range(101)] + [(10.2, 900.0)]
    assert usual_percentile(values, 0.99, window=10.0) == 2.0


def test_usual_percentile_of_a_short_run_is_that_of_all_of_it() -> None:
    assert usual_percentile([(0.0, 1.0), (1.0, 7.0)], 0.99, window=10.0) == 7.0


def test_slope_is_that_of_a_line() -> None:
    assert slope([0.0, 1.0, 2.0, 5.0], [3.0, 5.0, 7.0, 13.0]) == pytest.approx(2.0)


def test_slope_without_any_work_is_none() -> None:
    assert slope([], []) == 0.0
    assert slope([4.0, 4.0], [1.0, 9.0]) == 0.0


@pytest.mark.parametrize("length", [10, 11, 14, 599])
def test_parts_are_the_whole_in_its_order(length: int) -> None:
    values = [float(number) for number in range(length)]
    assert [value for number in range(5) for value in part(values, number)] == values


def test_process_that_keeps_its_size_is_flat_whatever_its_noise() -> None:
    rand = random.Random(7)
    flat = judged([WARM_KIB + rand.uniform(-1_500, 1_500) for _ in EVENTS])
    assert flat.held
    assert abs(flat.growth) < 500


def test_warming_up_is_no_growth() -> None:
    flat = judged([WARM_KIB * min(1.0, 0.5 + second / 200) for second in range(600)])
    assert flat.held
    assert flat.start == WARM_KIB / 2


def test_leak_of_a_few_bytes_an_event_is_seen_and_measured() -> None:
    flat = judged(leak(16))
    assert not flat.held
    assert flat.slope * 1024 == pytest.approx(16)


def test_slower_growth_than_the_limit_is_allowed() -> None:
    assert judged(leak(1)).held


def test_climb_that_is_given_back_just_before_the_end_is_seen_by_the_fit() -> None:
    flat = judged([WARM_KIB + max(0, second - 120) * 60 if second < 530 else WARM_KIB for second in range(600)])
    assert flat.growth <= flat.limit
    assert not flat.held


def test_step_late_in_the_run_is_seen_by_the_medians() -> None:
    assert not judged([WARM_KIB] * 450 + [WARM_KIB + 6_000] * 150).held


def test_large_process_may_grow_by_its_share_and_a_small_one_by_the_floor() -> None:
    assert judged([400_000.0] * 600).limit == 20_000
    assert judged([WARM_KIB] * 600).limit == GROWTH_FLOOR_KIB


def test_shrinking_is_flat() -> None:
    assert judged(leak(-16)).held


def test_run_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        flatness([1.0] * 9, [1.0] * 9, share=0.05, floor=1.0)


def test_speed_leaves_out_the_first_mark_and_what_was_before_it() -> None:
    assert speed([(100.0, 500), (100.5, 500), (101.0, 250)]) == pytest.approx(750)


@pytest.mark.parametrize("steps", [[], [(1.0, 5)], [(1.0, 5), (1.0, 5)]])
def test_speed_without_any_time_is_refused(steps: list[tuple[float, int]]) -> None:
    with pytest.raises(ValueError, match="two steps"):
        speed(steps)


def test_head_ends_with_the_mark_that_reaches_the_number() -> None:
    steps = [(float(second), 500) for second in range(10)]
    assert len(head(steps, 1)) == 1
    assert len(head(steps, 1_000)) == 2
    assert len(head(steps, 1_001)) == 3
    assert head(steps, 99_999) == steps


def test_tenths_of_an_even_run_are_even() -> None:
    steps = [(float(second), 500) for second in range(200)]
    assert tenths(steps) == pytest.approx([500.0] * 10)


def test_tenths_show_where_a_run_got_slower() -> None:
    moments = [float(second) for second in range(100)] + [100.0 + 4 * second for second in range(100)]
    speeds = tenths([(moment, 500) for moment in moments])
    assert speeds[:5] == pytest.approx([500.0] * 5)
    assert speeds[6:] == pytest.approx([125.0] * 4)
