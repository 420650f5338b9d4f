"""What holds for every batch of locked rows, beyond the examples beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outbox.consumer.planning import Plan, group, make_plan, waits_until
from outbox.declarations.handlers import Delivery, Handler
from outbox.storage.rows import Blocker, Locked
from tests.plans import DIES, DIES_AND_PARKS, HANDLERS, locked, parks_key, read, readable
from tests.properties import bounded

# --- the plan --------------------------------------------------------------------------------------------------------

KEYS = ("a", "b", "c")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@dataclass
class Table:
    """Rows by id: what each is, and whether it is unfinished. Stands for the outbox table of a service."""

    rows: dict[int, Locked]
    unfinished: set[int]
    """Also those that are dead and park their key."""
    fates: dict[int, str] = field(default_factory=dict)
    delivered_before: dict[int, set[int]] = field(default_factory=dict)
    """What was unfinished when a row was delivered."""

    def work_off(self, ids: Sequence[int]) -> Plan:
        """Do with ``ids`` what a consumer does in one transaction."""
        live = [self.rows[row_id] for row_id in sorted(ids)]
        plan = make_plan(live, self.blockers(live), read=read, parks_key=parks_key)
        fates = {each.delivery.outbox_id: "delivered" for each in plan.deliver}
        fates |= {burial.row.id: "parked" if burial.parks_key else "dead" for burial in plan.bury}
        fates |= {row.id: "waits" for row, _ in plan.wait}
        for row_id, fate in sorted(fates.items()):
            if fate == "delivered":
                self.delivered_before[row_id] = self.unfinished - {row_id}
            if fate in {"delivered", "dead"}:
                self.unfinished.remove(row_id)
        self.fates |= fates
        return plan

    def blockers(self, live: Sequence[Locked]) -> dict[str, Blocker]:
        """Return what the repository finds: of each key the oldest unfinished row that is not in hand."""
        in_hand = {row.id for row in live}
        found: dict[str, Blocker] = {}
        for key in {row.message_key for row in live}:
            others = [
                each for each in self.unfinished - in_hand if self.rows[each].message_key == key and each < max(in_hand)
            ]
            if others:
                found[key] = Blocker(id=min(others), due_at=None, unchanged_for=timedelta(0))
        return found


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, list[int]]:
    """Return a table of unfinished rows, and which of them are in hand."""
    shapes = draw(
        st.lists(
            st.tuples(
                st.sampled_from(KEYS),
                st.sampled_from(["good", "good", "good", DIES, DIES_AND_PARKS]),
                st.booleans() | st.just(True),
            ),
            min_size=1,
            max_size=14,
        )
    )
    largest = draw(st.sampled_from([len(shapes), 20, 2**63 - 1]))
    ids = sorted(draw(st.lists(st.integers(1, largest), min_size=len(shapes), max_size=len(shapes), unique=True)))
    rows = {row_id: locked(row_id, key, kind) for row_id, (key, kind, _) in zip(ids, shapes, strict=True)}
    in_hand = [row_id for row_id, (_, _, is_in_hand) in zip(ids, shapes, strict=True) if is_in_hand]
    return Table(rows, set(ids)), in_hand


def same(table: Table) -> Table:
    return Table(dict(table.rows), set(table.unfinished))


def cut(ids: Sequence[int], at: set[int]) -> list[list[int]]:
    """Return ``ids`` in parts, a new one beginning at each of the places ``at``."""
    bounds = sorted({0, *(place for place in at if place < len(ids)), len(ids)})
    return [list(ids[start:end]) for start, end in itertools.pairwise(bounds)]


cuts = st.sets(st.integers(1, 13), max_size=6)


@bounded(120)
@given(tables())
def test_batch_gives_what_event_by_event_gives(given_table: tuple[Table, list[int]]) -> None:
    together, in_hand = given_table
    one_by_one = same(together)

    together.work_off(in_hand)
    for row_id in in_hand:
        one_by_one.work_off([row_id])

    assert together.fates == one_by_one.fates
    assert together.unfinished == one_by_one.unfinished


@bounded(120)
@given(tables(), cuts)
def test_batch_in_parts_gives_what_the_whole_batch_gives(given_table: tuple[Table, list[int]], at: set[int]) -> None:
    whole, in_hand = given_table
    in_parts = same(whole)

    whole.work_off(in_hand)
    for part in cut(in_hand, at):
        in_parts.work_off(part)

    assert in_parts.fates == whole.fates


@bounded(150)
@given(tables(), st.data())
def test_nothing_is_delivered_before_its_predecessor_in_whatever_parts_and_order_records_come(
    given_table: tuple[Table, list[int]], data: st.DataObject
) -> None:
    table, in_hand = given_table
    for _ in range(3):  # what waits comes again
        comes = data.draw(st.permutations([each for each in in_hand if table.fates.get(each) in {None, "waits"}]))
        for part in cut(comes, data.draw(cuts)):
            table.work_off(part)

    for row_id, unfinished in table.delivered_before.items():
        key = table.rows[row_id].message_key
        assert not [each for each in unfinished if each < row_id and table.rows[each].message_key == key]


@bounded(120)
@given(tables())
def test_a_key_fares_as_if_it_were_alone(given_table: tuple[Table, list[int]]) -> None:
    all_keys, in_hand = given_table
    alone = same(all_keys)

    all_keys.work_off(in_hand)
    for key in KEYS:
        alone.work_off([each for each in in_hand if alone.rows[each].message_key == key])

    assert all_keys.fates == alone.fates


@bounded(120)
@given(tables())
def test_plan_says_of_each_row_once_why_it_has_its_fate(given_table: tuple[Table, list[int]]) -> None:
    table, in_hand = given_table
    blockers: Mapping[str, Blocker] = table.blockers([table.rows[each] for each in in_hand])
    plan = table.work_off(in_hand)

    orders = [
        [each.delivery.outbox_id for each in plan.deliver],
        [burial.row.id for burial in plan.bury],
        [row.id for row, _ in plan.wait],
    ]
    assert sorted(row_id for order in orders for row_id in order) == in_hand
    assert all(order == sorted(order) for order in orders)
    for burial in plan.bury:
        assert str(burial.error) == f"row {burial.row.id}"
        assert burial.parks_key == (burial.row.event_type == DIES_AND_PARKS)
    for row, blocker in plan.wait:
        if blocker is None:
            assert [
                each
                for each in plan.bury
                if each.parks_key and each.row.message_key == row.message_key and each.row.id < row.id
            ]
        else:
            assert blocker == blockers[row.message_key]
            assert blocker.id < row.id


# --- groups ----------------------------------------------------------------------------------------------------------

batches = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(sorted(HANDLERS))), max_size=30)


def groups_of(shapes: Sequence[tuple[str, str]]) -> list[tuple[Handler, list[Delivery[Any]]]]:
    return group([readable(row_id, key, HANDLERS[handler]) for row_id, (key, handler) in enumerate(shapes, start=1)])


@bounded(120)
@given(batches)
def test_a_list_is_cut_only_where_an_event_of_another_handler_goes_between(shapes: list[tuple[str, str]]) -> None:
    groups = groups_of(shapes)

    for (handler, _), (following, _) in itertools.pairwise(groups):
        assert handler is not following


@bounded(120)
@given(batches)
def test_each_handler_is_called_once_where_every_key_keeps_to_one_handler(shapes: list[tuple[str, str]]) -> None:
    handler_of: dict[str, str] = {}
    faithful = [(key, handler_of.setdefault(key, handler)) for key, handler in shapes]

    assert len(groups_of(faithful)) == len({handler for _, handler in faithful})


@bounded(120)
@given(batches)
def test_a_key_sees_its_handlers_in_the_order_in_which_it_would_one_by_one(shapes: list[tuple[str, str]]) -> None:
    seen: dict[str, list[tuple[int, Handler]]] = {}
    for handler, deliveries in groups_of(shapes):
        for delivery in deliveries:
            seen.setdefault(delivery.message_key, []).append((delivery.outbox_id, handler))

    expected: dict[str, list[tuple[int, Handler]]] = {}
    for row_id, (key, name) in enumerate(shapes, start=1):
        expected.setdefault(key, []).append((row_id, HANDLERS[name]))
    assert seen == expected


# --- waiting ---------------------------------------------------------------------------------------------------------

pauses = st.timedeltas(timedelta(milliseconds=1), timedelta(hours=1))
stillness = st.timedeltas(timedelta(days=-1), timedelta(days=3650))


@bounded(120)
@given(st.none() | st.timedeltas(timedelta(days=-30), timedelta(days=3650)), stillness, pauses, pauses)
def test_what_waits_comes_again_in_the_future_and_no_later_than_it_has_to(
    due_in: timedelta | None, unchanged_for: timedelta, one: timedelta, other: timedelta
) -> None:
    shortest, longest = min(one, other), max(one, other)
    before = Blocker(id=1, due_at=None if due_in is None else NOW + due_in, unchanged_for=unchanged_for)

    moment = waits_until(before, now=NOW, shortest=shortest, longest=longest)

    assert moment > NOW
    if due_in is not None and due_in > timedelta(0):
        assert moment == NOW + due_in
    else:
        assert shortest <= moment - NOW <= longest


@bounded(100)
@given(stillness, stillness, pauses, pauses)
def test_pause_grows_with_the_time_that_nothing_happened(
    one: timedelta, other: timedelta, pause: timedelta, other_pause: timedelta
) -> None:
    limits = {"shortest": min(pause, other_pause), "longest": max(pause, other_pause)}
    sooner, later = (
        waits_until(Blocker(id=1, due_at=None, unchanged_for=each), now=NOW, **limits) for each in sorted([one, other])
    )

    assert sooner <= later
