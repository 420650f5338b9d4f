"""How a chaos run measures take-overs: what counts, what excuses, and what it says of them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from tests.chaos import watch as watch_module
from tests.chaos.standstill import Piece, Span, StandStill, absent, stand_still
from tests.chaos.watch import MOST_WAITED_S, Watch, process_of, stalled_s

KILLED_AT = 1000.0


def piece(part: int, ready_at: float, done_at: float) -> Piece:
    return Piece(part, KILLED_AT + ready_at, KILLED_AT + done_at, f"part {part}")


def span(began_at: float, ended_at: float, why: str = "kafka-kill") -> Span:
    return Span(KILLED_AT + began_at, KILLED_AT + ended_at, why)


def measure(*pieces: Piece, spans: tuple[Span, ...] = (), waited_share: float = 0.0) -> StandStill:
    found = stand_still(KILLED_AT, {1, 2}, pieces, spans, lambda start, end: waited_share * min(end - start, 1e6))
    assert found is not None
    return found


def test_share_is_taken_over_when_its_last_part_is_worked_on() -> None:
    found = measure(piece(1, -1, 3), piece(1, -1, 30), piece(2, -1, 7), piece(3, -1, 60))
    assert found.took_s == pytest.approx(7)
    assert found.is_in_time
    assert not found.is_too_long


def test_part_stands_still_from_when_it_has_work() -> None:
    assert measure(piece(1, 20, 23)).took_s == pytest.approx(3)
    assert measure(piece(1, -1, -0.5), piece(1, -0.5, 4)).took_s == pytest.approx(4)


def test_share_without_work_is_not_measured() -> None:
    assert stand_still(KILLED_AT, (), [piece(1, -1, 3)], (), lambda *_: 0.0) is None
    assert stand_still(KILLED_AT, {1}, [piece(1, -2, -1)], (), lambda *_: 0.0) is None


def test_long_stand_still_with_nothing_in_the_way_is_too_long() -> None:
    assert measure(piece(1, -1, 10.5)).is_too_long
    assert measure(piece(1, -1, math.inf)).is_too_long


@pytest.mark.parametrize(
    ("spans", "is_too_long"),
    [
        ((span(2, 5),), False),
        ((span(-5, 4),), False),
        ((span(9, 30),), False),
        ((span(5, 5.000001),), False),
        ((span(0.5, 1),), True),
        ((span(13, 20),), True),
        ((span(-9, -1),), True),
        ((span(1, 2), span(1.5, 3)), True),
    ],
)
def test_what_is_in_the_way_makes_the_time_count_anew(spans: tuple[Span, ...], *, is_too_long: bool) -> None:
    found = measure(piece(1, -1, 13.5), spans=spans)
    assert not found.is_in_time
    assert found.is_too_long == is_too_long


def test_time_for_which_the_machine_kept_everybody_waiting_does_not_count() -> None:
    assert not measure(piece(1, -1, 14), waited_share=0.4).is_too_long
    assert measure(piece(1, -1, 60), waited_share=0.4).is_too_long


def test_excuses_are_what_was_in_the_way_and_nothing_else() -> None:
    found = measure(piece(1, -1, 14), spans=(span(-9, -1, "before"), span(3, 4, "during"), span(15, 16, "after")))
    assert found.excuses == ("during",)


@pytest.mark.parametrize(
    ("presence", "gaps"),
    [
        ([], [(0, 20)]),
        ([(-5, 30)], []),
        ([(4, 30)], [(0, 4)]),
        ([(-5, 3), (5, 8), (6, 30)], [(3, 5)]),
        ([(-5, 3)], [(3, 20)]),
        ([(-9, -5)], [(0, 20)]),
    ],
)
def test_nobody_is_there_until_somebody_comes(
    presence: list[tuple[float, float]], gaps: list[tuple[float, float]]
) -> None:
    found = absent(presence, since=0, until=20, why="nobody")
    assert [(each.began_at, each.ended_at) for each in found] == gaps


def test_process_is_read_from_the_name_of_a_worker() -> None:
    assert process_of("host:4711:0123abcd") == 4711


def test_pressure_is_what_some_process_waited() -> None:
    text = "some avg10=1.43 avg60=2.24 avg300=3.15 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    assert stalled_s(text) == pytest.approx(2.5)
    assert stalled_s("") == 0


def test_share_of_a_process_is_what_it_owned_at_the_last_look_before() -> None:
    watch = Watch()
    watch.note_leases([("probe", 1, "host:7:a", 1), ("probe", 2, "host:8:b", 1), ("probe", 3, "host:7:a", 0)])
    (look,) = watch.looks
    assert watch.owned_by(7, before=look.at + 1e-6) == {("probe", 1), ("probe", 3)}
    assert watch.owned_by(7, before=0) == frozenset()
    assert look.holders == {("probe", 1): 7, ("probe", 2): 8}


def test_busy_machine_excuses_a_bounded_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pressure = tmp_path / "cpu"
    monkeypatch.setattr(watch_module, "_PRESSURE", (pressure,))
    watch = Watch()
    for stalled in (5, 12, 500):
        pressure.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled}000000\n")
        watch.note_pressure()
    now = time.time()
    assert watch.waited_s(now, now + 100) == 0
    assert watch.waited_s(now - 100, now + 3) == MOST_WAITED_S


def test_machine_that_does_not_tell_of_pressure_excuses_nothing() -> None:
    assert Watch().waited_s(0, 10) == 0
