"""The memory of events that found locks of others in their way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.consumer.charges import ContendedEvents
from tests.properties import bounded

MOST = 10_000


def test_times_in_a_row_are_counted_for_each_event_until_it_is_forgotten() -> None:
    contended = ContendedEvents()
    assert not contended

    assert [contended.note(7), contended.note(7), contended.note(8), contended.note(7)] == [1, 2, 1, 3]
    assert 7 in contended
    assert 9 not in contended
    contended.forget([7, 9])

    assert 7 not in contended
    assert contended.note(7) == 1
    contended.forget([7, 8])
    assert not contended


@bounded(100)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=50))
def test_the_count_is_that_of_the_notes_since_the_event_was_forgotten_last(steps: list[tuple[int, bool]]) -> None:
    contended = ContendedEvents()
    counts: dict[int, int] = {}
    for row_id, is_noted in steps:
        if is_noted:
            counts[row_id] = counts.get(row_id, 0) + 1
            assert contended.note(row_id) == counts[row_id]
        else:
            counts.pop(row_id, None)
            contended.forget([row_id])
        assert {each for each in range(6) if each in contended} == set(counts)


def test_of_very_many_the_ones_that_were_not_seen_for_the_longest_time_are_forgotten() -> None:
    contended = ContendedEvents()
    for row_id in range(MOST):
        contended.note(row_id)
    contended.note(0)

    contended.note(MOST)

    assert 1 not in contended
    assert contended.note(0) == 3
