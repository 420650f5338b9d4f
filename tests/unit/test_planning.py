"""What is done with a batch of locked rows, decided without a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.consumer.planning import Readable, group, lost_before, make_plan, waits_until
from outbox.declarations.handlers import Handler
from outbox.storage.rows import Blocker, Locked
from tests.plans import BATCH, OTHER, SINGLE, Nothing, locked, parks_key, read, readable

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHORTEST, LONGEST = timedelta(milliseconds=200), timedelta(seconds=60)


def blocker(row_id: int) -> Blocker:
    return Blocker(id=row_id, due_at=None, unchanged_for=timedelta(0))


def planned(rows: Sequence[Locked], blockers: dict[str, Blocker] | None = None) -> tuple[list[int], ...]:
    plan = make_plan(rows, blockers or {}, read=read, parks_key=parks_key)
    return (
        [each.delivery.outbox_id for each in plan.deliver],
        [burial.row.id for burial in plan.bury],
        [row.id for row, _ in plan.wait],
    )


# --- the plan ----------------------------------------------------------------------------------------------------


def test_rows_without_predecessor_are_delivered() -> None:
    assert planned([locked(1), locked(2), locked(3, "other")]) == ([1, 2, 3], [], [])


def test_rows_behind_a_blocker_wait_and_other_keys_go_on() -> None:
    rows = [locked(2), locked(3, "other"), locked(4)]

    assert planned(rows, {"k": blocker(1)}) == ([3], [], [2, 4])


def test_rows_before_a_blocker_go_on() -> None:
    assert planned([locked(1), locked(3)], {"k": blocker(2)}) == ([1], [], [3])


def test_unreadable_row_dies_alone() -> None:
    assert planned([locked(1), locked(2, event_type="bad"), locked(3)]) == ([1, 3], [2], [])


def test_unreadable_row_that_parks_its_key_holds_back_what_follows() -> None:
    rows = [locked(1), locked(2, event_type="bad-parks"), locked(3), locked(4, "other")]
    plan = make_plan(rows, {}, read=read, parks_key=parks_key)

    assert planned(rows) == ([1, 4], [2], [3])
    assert plan.bury[0].parks_key
    assert plan.wait == [(rows[2], None)]


def test_unreadable_row_behind_a_blocker_waits_for_its_turn() -> None:
    assert planned([locked(2, event_type="bad")], {"k": blocker(1)}) == ([], [], [2])


rows_of_a_batch = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["good", "good", "bad", "bad-parks"])), max_size=12
).flatmap(
    lambda shapes: st.lists(st.integers(1, 40), min_size=len(shapes), max_size=len(shapes), unique=True).map(
        lambda ids: [locked(row_id, *shape) for row_id, shape in zip(sorted(ids), shapes, strict=True)]
    )
)


@given(rows_of_a_batch, st.dictionaries(st.sampled_from("abc"), st.integers(1, 40)))
def test_every_row_has_one_place_and_nothing_overtakes_its_predecessor(
    rows: list[Locked], blocked_from: dict[str, int]
) -> None:
    in_hand = {row.id for row in rows}
    blockers = {key: blocker(row_id) for key, row_id in blocked_from.items() if row_id not in in_hand}
    delivered, buried, waiting = planned(rows, blockers)

    assert sorted(delivered + buried + waiting) == sorted(in_hand)
    for row in rows:
        before = {each.id for each in rows if each.message_key == row.message_key and each.id < row.id}
        is_blocked = row.message_key in blockers and blockers[row.message_key].id < row.id
        is_parked = any(each.id in buried and parks_key(each.event_type) for each in rows if each.id in before)
        assert (row.id in waiting) == (is_blocked or is_parked)
        if row.id not in waiting:
            assert not before & set(waiting)


# --- groups ------------------------------------------------------------------------------------------------------


def grouped(deliveries: Sequence[Readable]) -> list[tuple[Handler, list[int]]]:
    return [(handler, [each.outbox_id for each in of_group]) for handler, of_group in group(deliveries)]


def test_one_handler_is_one_group() -> None:
    assert grouped([readable(1, "a", BATCH), readable(2, "b", BATCH), readable(3, "a", BATCH)]) == [(BATCH, [1, 2, 3])]


def test_handlers_of_different_keys_do_not_cut_each_others_groups() -> None:
    deliveries = [readable(1, "a", BATCH), readable(2, "b", SINGLE), readable(3, "c", BATCH), readable(4, "b", SINGLE)]

    assert grouped(deliveries) == [(BATCH, [1, 3]), (SINGLE, [2, 4])]


def test_event_of_the_same_key_for_another_handler_cuts_the_group() -> None:
    deliveries = [readable(1, "a", BATCH), readable(2, "a", SINGLE), readable(3, "a", BATCH), readable(4, "b", BATCH)]

    assert grouped(deliveries) == [(BATCH, [1]), (SINGLE, [2]), (BATCH, [3, 4])]


def test_nothing_is_no_group() -> None:
    assert group([]) == []


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([SINGLE, OTHER, BATCH])), max_size=30))
def test_groups_keep_the_order_of_every_key_and_hold_every_row_once(shapes: list[tuple[str, Handler]]) -> None:
    deliveries = [readable(row_id, key, handler) for row_id, (key, handler) in enumerate(shapes, start=1)]
    handler_of = {each.delivery.outbox_id: each.handler for each in deliveries}

    groups = group(deliveries)

    handled = [delivery for _, of_group in groups for delivery in of_group]
    assert sorted(delivery.outbox_id for delivery in handled) == list(handler_of)
    for key in "abcd":
        of_key = [delivery.outbox_id for delivery in handled if delivery.message_key == key]
        assert of_key == sorted(of_key)
    for handler, of_group in groups:
        assert of_group
        assert all(handler_of[delivery.outbox_id] is handler for delivery in of_group)
        assert [each.outbox_id for each in of_group] == sorted(each.outbox_id for each in of_group)


# --- waiting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("due_in_s", "unchanged_for_s", "waits_s"),
    [
        (None, 0, 0.2),  # just put down: soon again
        (None, -5, 0.2),
        (None, 7, 7),  # nothing has happened for a while: as long again
        (None, 3600, 60),  # parked for an hour: at the longest pause
        (30, 3600, 30),  # in its back-off: exactly then
        (600, 0, 600),  # also beyond the longest pause: nothing can happen before
        (-1, 7, 7),  # due already: as if it were on its way
        (0, 0, 0.2),
    ],
)
def test_pause_follows_from_what_the_predecessor_does(
    due_in_s: float | None, unchanged_for_s: float, waits_s: float
) -> None:
    due_at = None if due_in_s is None else NOW + timedelta(seconds=due_in_s)
    before = Blocker(id=1, due_at=due_at, unchanged_for=timedelta(seconds=unchanged_for_s))

    assert waits_until(before, now=NOW, shortest=SHORTEST, longest=LONGEST) == NOW + timedelta(seconds=waits_s)


def test_row_whose_predecessor_has_just_died_in_the_same_batch_waits_shortly() -> None:
    assert waits_until(None, now=NOW, shortest=SHORTEST, longest=LONGEST) == NOW + SHORTEST


@pytest.mark.parametrize(
    ("is_sent", "unchanged_for_s", "is_lost"),
    [
        (True, 300, True),
        (True, 299, False),  # it may still be on its way
        (False, 3600, False),  # in its back-off, or parked
    ],
)
def test_predecessor_that_was_sent_long_ago_and_has_not_come_is_lost(
    is_sent: bool, unchanged_for_s: float, is_lost: bool
) -> None:
    before = Blocker(id=1, due_at=None, unchanged_for=timedelta(seconds=unchanged_for_s), is_sent=is_sent)
    waiting: list[tuple[Locked, Blocker | None]] = [(locked(2), before), (locked(3), before), (locked(4), None)]

    assert lost_before(waiting, after=timedelta(minutes=5)) == ([1] if is_lost else [])


def test_readable_keeps_its_delivery() -> None:
    each: Any = readable(1)
    assert each.delivery.payload == Nothing()
