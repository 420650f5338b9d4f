"""The schedule of a chaos run: the same for the same seed, within its time, one fault at a time for each lane."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.chaos.kinds import KINDS, STANDING
from tests.chaos.schedule import TimedFault, plan

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
