"""The schedule of a chaos run: the same for the same seed, within its time, one fault at a time for each lane."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from tests.chaos.kinds import KINDS, STANDING
from tests.chaos.schedule import FULL_RUN_MINUTES, LEAST_INJECTED, TimedFault, plan, quiet_windows, rare

MINUTES = 5.0


def timed(faults: list[TimedFault]) -> list[TimedFault]:
    return [fault for fault in faults if fault.lane != STANDING]


def test_same_seed_gives_the_same_schedule_and_another_seed_another_one() -> None:
    assert plan(7, MINUTES) == plan(7, MINUTES)
    assert plan(7, MINUTES) != plan(8, MINUTES)


def test_every_fault_has_its_turn_within_the_time_of_the_run() -> None:
    faults = plan(7, MINUTES)
    assert {fault.name for fault in faults} == KINDS.keys()
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in timed(faults):
        assert fault.at_s > 0
        assert fault.at_s + fault.length_s <= MINUTES * 60
        assert KINDS[fault.name].shortest_s <= fault.length_s <= KINDS[fault.name].longest_s
        assert 0 <= fault.dice < 1


def test_faults_of_one_lane_do_not_overlap() -> None:
    free_from: dict[str, float] = defaultdict(float)
    for fault in timed(plan(7, MINUTES)):
        assert fault.at_s >= free_from[fault.lane]
        free_from[fault.lane] = fault.at_s + fault.length_s


def test_leaving_out_a_lane_changes_nothing_in_the_others() -> None:
    with_all = [fault for fault in plan(7, MINUTES) if fault.lane != "kafka"]
    without = plan(7, MINUTES, [name for name, kind in KINDS.items() if kind.lane != "kafka"])
    assert without == with_all


def test_run_that_is_too_short_for_a_fault_has_none() -> None:
    assert timed(plan(7, 0.05)) == []


def test_unknown_fault_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="there is no fault locusts"):
        plan(7, MINUTES, ["relay-kill", "locusts"])


@pytest.mark.parametrize("seed", [1, 7, 2026])
def test_full_run_plans_each_fault_more_often_than_it_has_to_be_injected(seed: int) -> None:
    counts = Counter(fault.name for fault in timed(plan(seed, FULL_RUN_MINUTES)))
    assert {name for name, kind in KINDS.items() if kind.lane != STANDING} == counts.keys()
    assert min(counts.values()) > LEAST_INJECTED


def test_kind_that_a_full_run_injects_too_rarely_is_named() -> None:
    counts = Counter(dict.fromkeys(KINDS, LEAST_INJECTED))
    assert rare(counts, minutes=FULL_RUN_MINUTES, faults=KINDS) == []
    counts["relay-kill"] -= 1
    del counts["poison"]
    assert rare(counts, minutes=FULL_RUN_MINUTES, faults=KINDS) == ["relay-kill", "poison"]
    assert rare(counts, minutes=FULL_RUN_MINUTES, faults=["relay-kill"]) == ["relay-kill"]
    assert rare(counts, minutes=FULL_RUN_MINUTES - 1, faults=KINDS) == []


def test_in_quiet_times_only_what_must_hold_up_nobody_goes_wrong() -> None:
    windows = list(quiet_windows(MINUTES * 60))
    assert windows
    through = {"row-holders", "outbox-holders", "hosts", "tables"}
    for fault in timed(plan(7, MINUTES)):
        for begin_s, until_s in windows:
            overlaps = fault.at_s < until_s and fault.at_s + fault.length_s > begin_s
            assert not overlaps or fault.lane in through, fault
