"""What holds for every sequence of steps of a row, beyond the examples beside it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from outbox.lifecycle import (
    BURY,
    CONSUME,
    EDIT,
    GIVE_UP,
    INTERRUPT,
    MARK_PUBLISHED,
    REDELIVER,
    REPLAY,
    RETRY,
    TRANSITIONS,
    UNFINISHED,
    WAIT,
    Status,
    Transition,
)
from tests.properties import bounded

sequences = st.lists(st.sampled_from(TRANSITIONS), max_size=60)


def history(steps: Sequence[Transition]) -> list[tuple[Transition, Status]]:
    """Return the steps that change a new row, each with the status before it; the others are refused."""
    status = Status.PENDING
    applied: list[tuple[Transition, Status]] = []
    for step in steps:
        if status in step.sources:
            applied.append((step, status))
            status = step.target
    return applied


@bounded(120)
@given(sequences)
def test_consumed_is_the_last_step_of_any_history_and_comes_once(steps: list[Transition]) -> None:
    names = [step.name for step, _ in history(steps)]

    assert names.count(CONSUME.name) <= 1
    assert CONSUME.name not in names[:-1]


@bounded(120)
@given(sequences)
def test_deaths_and_replays_take_turns_whatever_happens_between(steps: list[Transition]) -> None:
    turns = [step for step, _ in history(steps) if step in {BURY, REPLAY}]

    assert turns[::2] == [BURY] * len(turns[::2])
    assert turns[1::2] == [REPLAY] * len(turns[1::2])


@bounded(120)
@given(sequences)
def test_row_is_published_again_only_after_it_was_put_back(steps: list[Transition]) -> None:
    is_published = False
    for step, before in history(steps):
        assert (before == Status.PUBLISHED) == is_published
        if step is MARK_PUBLISHED:
            assert not is_published
            is_published = True
        elif step in {RETRY, WAIT, INTERRUPT, REDELIVER, BURY, CONSUME}:
            is_published = False


@bounded(120)
@given(sequences)
def test_what_a_person_does_touches_dead_rows_only_and_workers_touch_none(steps: list[Transition]) -> None:
    for step, before in history(steps):
        assert (step in {REPLAY, GIVE_UP, EDIT}) == (before == Status.DEAD)


@bounded(120)
@given(sequences)
def test_whatever_happened_an_unfinished_or_dead_row_can_still_be_consumed(steps: list[Transition]) -> None:
    applied = history(steps)
    status = applied[-1][0].target if applied else Status.PENDING
    if status != Status.CONSUMED:
        assert history([*steps, REPLAY, CONSUME])[-1][0] is CONSUME
        assert (status in UNFINISHED) == (history([*steps, CONSUME])[-1:] == [(CONSUME, status)])


@bounded(120)
@given(sequences)
def test_row_that_was_announced_can_be_brought_to_any_end(steps: list[Transition]) -> None:
    """What is announced is in its back-off, and the try that was announced goes on all the same."""
    applied = history(steps)
    if applied and applied[-1][0] is INTERRUPT:
        for end in (CONSUME, RETRY, WAIT, INTERRUPT, BURY):
            assert history([*steps, end])[-1] == (end, Status.PENDING)


@bounded(60)
@given(st.text(max_size=12))
def test_status_that_nobody_knows_is_left_alone(found: str) -> None:
    assume(found not in set(Status))
    assert not any(found in step.sources for step in TRANSITIONS)
    assert found not in UNFINISHED
