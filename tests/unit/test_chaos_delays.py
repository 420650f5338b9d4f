"""How a chaos run measures what a held row costs the events of other keys, and what excuses it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.chaos.delays import BACKLOG, LIMIT_S, TAKE_OVER_S, Delays, Wait, by_hold, measure
from tests.chaos.ledger import Hold
from tests.chaos.standstill import Span

HOLD = Hold(100.0, 200.0, "row-holder")
FREEZE = Hold(100.0, 130.0, "host-freeze", frozen_pid=7)


def wait(began_at: float, took_s: float, *, partition: int = 0, key: str = "k") -> Wait:
    return Wait(f"{partition}/{began_at}/{took_s}", key, partition, began_at, began_at + took_s)


def measured(
    *waits: Wait, hold: Hold = HOLD, spans: Sequence[Span] = (), slow_parts: Sequence[int] = (), waited: float = 0.0
) -> Delays:
    return measure(
        waits, [hold], spans, held_by=lambda _: slow_parts, waited_s=lambda start, end: waited * min(end - start, 1e6)
    )


def test_event_that_comes_in_time_is_measured() -> None:
    found = measured(wait(110, 0.2), wait(120, LIMIT_S))
    assert (found.measured, found.undisturbed, found.longest_s) == (2, 2, LIMIT_S)
    assert not found.too_long


@pytest.mark.parametrize("took_s", [LIMIT_S + 0.1, math.inf])
def test_event_of_another_key_that_waits_too_long_is_a_breach(took_s: float) -> None:
    found = measured(wait(110, took_s))
    ((hold, (delay,)),) = by_hold(found.too_long)
    assert hold == HOLD
    assert delay.stretch.blamed_s == pytest.approx(min(took_s, 90))
    assert found.measured == 1


def test_events_outside_of_the_hold_and_of_its_own_keys_do_not_count() -> None:
    hold = Hold(100.0, 200.0, "outbox-holder", keys=frozenset({"mine"}))
    found = measured(wait(90, 60), wait(200, 60), wait(110, 60, key="mine"), wait(196, 60), hold=hold)
    assert not found.too_long
    assert found.excused == 1  # the row was given back before the event had waited for too long


@pytest.mark.parametrize(
    ("span", "is_excused"), [(Span(112, 114, "kafka-kill"), True), (Span(90, 111, "kafka-kill"), False)]
)
def test_what_else_was_in_the_way_makes_the_time_count_anew(span: Span, *, is_excused: bool) -> None:
    found = measured(wait(110, 8), spans=[span])
    assert (not found.too_long) == is_excused
    assert found.excused == is_excused


def test_event_that_something_else_may_have_disturbed_is_told_apart() -> None:
    found = measured(wait(110, 1), wait(150, 1), spans=[Span(105, 115, "kafka-kill"), Span(104, 106, "kafka-cut")])
    assert (found.measured, found.undisturbed) == (2, 1)


def test_event_behind_a_backlog_waits_for_that() -> None:
    backlog = [wait(100 + number / 100, 50) for number in range(BACKLOG + 1)]
    found = measured(*backlog, wait(110, 8), wait(110, 8, partition=1))
    assert {delay.wait.partition for delay in found.too_long if delay.wait.began_at == 110} == {1}
    assert found.excused == 1


def test_time_for_which_the_machine_kept_everybody_waiting_does_not_count() -> None:
    assert measured(wait(110, 8)).too_long
    assert not measured(wait(110, 8), waited=0.5).too_long


def test_partitions_of_a_frozen_worker_may_take_a_take_over_longer() -> None:
    late = LIMIT_S + TAKE_OVER_S
    found = measured(wait(101, late, partition=1), wait(101, late, partition=2), hold=FREEZE, slow_parts=[1])
    assert [delay.wait.partition for delay in found.too_long] == [2]
    assert measured(wait(101, late + 1, partition=1), hold=FREEZE, slow_parts=[1]).too_long
