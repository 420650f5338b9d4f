"""What holds for every sequence of steps, every batch, every policy and every text, beyond the examples beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbox.backoff import RetryPolicy, delay
from outbox.envelope import (
    REFERENCE_HEADER,
    Envelope,
    Message,
    decode_envelope,
    decode_message,
    encode_envelope,
    encode_message,
    headers_of,
)
from outbox.exceptions import EnvelopeError, UnreadableError
from outbox.handlers import Delivery, Handler
from outbox.lifecycle import (
    BURY,
    CONSUME,
    EDIT,
    GIVE_UP,
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
from outbox.planning import Plan, Readable, group, make_plan, waits_until
from outbox.rows import Blocker, Locked
from tests.properties import bounded

# --- the state machine -----------------------------------------------------------------------------------------------

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
        elif step in {RETRY, WAIT, REDELIVER, BURY, CONSUME}:
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


@bounded(60)
@given(st.text(max_size=12))
def test_status_that_nobody_knows_is_left_alone(found: str) -> None:
    assume(found not in set(Status))
    assert not any(found in step.sources for step in TRANSITIONS)
    assert found not in UNFINISHED


# --- the plan --------------------------------------------------------------------------------------------------------

KEYS = ("a", "b", "c")
HANDLERS = {name: Handler(lambda _given: None, name == "batch") for name in ("single", "other", "batch")}
DIES, DIES_AND_PARKS = "bad", "bad-parks"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Nothing(msgspec.Struct):
    """A payload."""


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


def locked(row_id: int, key: str, event_type: str) -> Locked:
    return Locked(
        id=row_id,
        event_type=event_type,
        message_key=key,
        status="published",
        retry_count=0,
        max_retry=20,
        is_due=True,
        traceparent="",
        payload="{}",
        payload_length=2,
    )


def readable(row_id: int, key: str, handler: str = "single") -> Readable:
    delivery = Delivery(
        outbox_id=row_id,
        event_id=str(row_id),
        event_type="good",
        event_version="v1",
        message_key=key,
        aggregate_id=key,
        payload=Nothing(),
        attempt=1,
        database="default",
    )
    return Readable(delivery, HANDLERS[handler])


def read(row: Locked) -> Readable:
    if row.event_type in {DIES, DIES_AND_PARKS}:
        raise UnreadableError(f"row {row.id}")
    return readable(row.id, row.message_key)


def parks_key(event_type: str) -> bool:
    return event_type == DIES_AND_PARKS


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
    return group([readable(row_id, key, handler) for row_id, (key, handler) in enumerate(shapes, start=1)])


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


# --- back-off --------------------------------------------------------------------------------------------------------

MICROSECOND = timedelta(microseconds=1)
LONGEST_EXACT = timedelta(days=365 * 270)
"""Above this Python's own seconds are no longer exact to the microsecond."""

attempts = st.integers(1, 80) | st.integers(1, 10**30)
shares = st.floats(0, 1, exclude_max=True)
any_share = st.floats(0, 1)


@st.composite
def policies(draw: st.DrawFn, *, jitters: st.SearchStrategy[float] = any_share) -> RetryPolicy:
    base = draw(st.timedeltas(MICROSECOND, timedelta(days=400)) | st.sampled_from([MICROSECOND, timedelta(days=400)]))
    cap = draw(st.just(base) | st.timedeltas(base, LONGEST_EXACT) | st.just(LONGEST_EXACT))
    return RetryPolicy(base=base, cap=cap, jitter=draw(jitters))


@bounded(150)
@given(policies(), attempts, shares)
def test_pause_is_never_negative_and_never_above_the_cap(policy: RetryPolicy, attempt: int, rand: float) -> None:
    assert timedelta(0) <= delay(attempt, policy, rand) <= policy.cap


@bounded(120)
@given(policies(jitters=st.just(0.0)), st.integers(1, 200), shares)
def test_pause_without_jitter_is_what_whole_numbers_give(policy: RetryPolicy, attempt: int, rand: float) -> None:
    exact = min(Fraction(policy.cap // MICROSECOND), Fraction(policy.base // MICROSECOND) * 2 ** (attempt - 1))

    assert abs(Fraction(delay(attempt, policy, rand) // MICROSECOND) - exact) <= 1


@bounded(120)
@given(policies(jitters=st.just(0.0)), attempts, attempts, shares)
def test_pause_without_jitter_grows_from_any_attempt_to_any_later_one(
    policy: RetryPolicy, one: int, other: int, rand: float
) -> None:
    assert delay(min(one, other), policy, rand) <= delay(max(one, other), policy, rand)


@bounded(100)
@given(policies(jitters=st.just(0.0)), st.integers(70, 10**300))
def test_pause_of_a_huge_attempt_is_the_cap(policy: RetryPolicy, attempt: int) -> None:
    assert delay(attempt, policy, 0.0) == policy.cap


@bounded(120)
@given(policies(), attempts, shares, shares)
def test_more_of_the_random_share_never_makes_a_pause_longer(
    policy: RetryPolicy, attempt: int, one: float, other: float
) -> None:
    assert delay(attempt, policy, max(one, other)) <= delay(attempt, policy, min(one, other))


# --- the envelope ----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["", "\x00", "\x00\x00a\x00", "\u2028", "\ufeff", "\uffff", "\U0010ffff", "\\u0000", '"', "</script>", "e\u0301"]
)
filled_texts = texts.filter(bool)
ids = st.integers(1, 2**63 - 1)
blanks = st.text(" \t\r\n", max_size=2)
numbers = st.integers().map(str) | st.from_regex(
    r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)


def json_text(text: str, *, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)


strings = st.builds(lambda text, ascii_only: json_text(text, ascii_only=ascii_only), texts, st.booleans())


def _list_text(items: list[str], blank: str) -> str:
    return f"[{blank}{f'{blank},'.join(items)}{blank}]"


def _object_text(items: list[tuple[str, str]], blank: str) -> str:
    members = f",{blank}".join(f"{name}{blank}:{value}" for name, value in items)
    return f"{{{blank}{members}{blank}}}"


json_texts = st.recursive(
    numbers | strings | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.builds(_list_text, st.lists(inner, max_size=4), blanks)
        | st.builds(_object_text, st.lists(st.tuples(strings, inner), max_size=4), blanks)
    ),
    max_leaves=10,
)
"""JSON as any software may write it: any blanks, escapes and numbers, names that repeat."""

envelopes = st.builds(
    lambda event_id, event_type, version, aggregate_id, payload: Envelope(
        event_id=event_id,
        event_type=event_type,
        event_version=version,
        aggregate_id=aggregate_id,
        payload=msgspec.Raw(payload.encode()),
    ),
    filled_texts,
    filled_texts,
    filled_texts,
    texts,
    json_texts,
)


def fields_of(read: Envelope | Message) -> tuple[str, str, str, str, bytes]:
    return read.event_id, read.event_type, read.event_version, read.aggregate_id, bytes(read.payload)


@bounded(150)
@given(envelopes, ids, texts)
def test_everything_comes_through_column_and_topic_unchanged_the_payload_byte_for_byte(
    envelope: Envelope, row_id: int, service: str
) -> None:
    stored = decode_envelope(
        encode_envelope(envelope).decode(), outbox_id=row_id % 7 + 1, event_type=envelope.event_type
    )
    message = decode_message(encode_message(stored, outbox_id=row_id, service=service))

    assert fields_of(stored) == fields_of(envelope)
    assert fields_of(message) == fields_of(envelope)
    assert (message.outbox_id, message.service_name) == (row_id, service)


@st.composite
def written_elsewhere(draw: st.DrawFn, fields: Mapping[str, str]) -> str:
    """Return ``fields`` (name to JSON) as other software may write them: in any order, among others, with blanks."""
    names = strings.filter(lambda name: json.loads(name) not in Message.__struct_fields__)
    foreign = draw(st.dictionaries(names, json_texts, max_size=2))
    known = {json_text(name, ascii_only=False): value for name, value in fields.items()}
    members = draw(st.permutations([*(foreign | known).items()]))
    return draw(blanks) + _object_text(list(members), draw(blanks)) + draw(blanks)


@bounded(120)
@given(envelopes, ids, texts, st.booleans(), st.data())
def test_message_is_the_same_however_its_json_is_written_and_what_is_left_out_has_its_fallback(
    envelope: Envelope, row_id: int, service: str, ascii_only: bool, data: st.DataObject
) -> None:
    fallbacks = {
        "event_id": str(row_id),
        "event_version": "v1",
        "service_name": "",
        "aggregate_id": "",
        "payload": msgspec.Raw(b"null"),
    }
    left_out = data.draw(st.sets(st.sampled_from(sorted(fallbacks)), max_size=2))
    written = {name: getattr(envelope, name) for name in Envelope.__struct_fields__} | {"service_name": service}
    fields = {
        name: bytes(value).decode() if name == "payload" else json_text(value, ascii_only=ascii_only)
        for name, value in written.items()
        if name not in left_out
    }

    message = decode_message(data.draw(written_elsewhere({"outbox_id": str(row_id)} | fields)).encode())

    assert message.outbox_id == row_id
    for name, value in written.items():
        expected = fallbacks[name] if name in left_out else value
        found = getattr(message, name)
        assert (bytes(found) == bytes(expected)) if name == "payload" else (found == expected)


@bounded(120)
@given(numbers | strings | st.sampled_from(["null", "true", "[1]", "1e400", "-0", "9223372036854775807.0"]))
def test_outbox_id_is_the_number_that_is_written_or_the_record_is_refused(literal: str) -> None:
    raw = f'{{"outbox_id": {literal}, "event_type": "a.b"}}'.encode()
    try:
        found = decode_message(raw).outbox_id
    except EnvelopeError:
        assert not (literal.isdecimal() and literal.isascii() and 0 < int(literal) < 2**63)
    else:
        assert found == Fraction(literal)
        assert 0 < found < 2**63


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a good column or record in which something was changed, lost or put in."""
    envelope = draw(envelopes)
    good = draw(
        st.sampled_from([encode_envelope(envelope), encode_message(envelope, outbox_id=draw(ids), service="agent")])
    )
    at = draw(st.integers(0, len(good)))
    lost = draw(st.integers(0, 3))
    return (
        good[:at]
        + draw(st.binary(max_size=3) | st.sampled_from([b'"', b"}", b",", b"\\", b"\\ud800"]))
        + (good[at + lost :])
    )


anything = st.binary(max_size=80) | damaged() | json_texts.map(str.encode)


@bounded(250)
@given(anything)
def test_whatever_is_read_from_a_record_is_whole_and_everything_else_is_refused(raw: bytes) -> None:
    try:
        message = decode_message(raw)
    except EnvelopeError:
        return
    assert 0 < message.outbox_id < 2**63
    assert message.event_id
    assert message.event_version
    again = Envelope(**{name: getattr(message, name) for name in Envelope.__struct_fields__})
    found = decode_message(encode_message(again, outbox_id=message.outbox_id, service=message.service_name))
    assert fields_of(found) == fields_of(message)


@bounded(250)
@given(anything | anything.map(lambda raw: raw.decode(errors="surrogateescape")), ids, st.booleans())
def test_whatever_is_read_from_a_column_can_be_sent_and_everything_else_is_refused(
    raw: bytes | str, row_id: int, by_reference: bool
) -> None:
    try:
        envelope = decode_envelope(raw, outbox_id=row_id, event_type="a.b")
    except EnvelopeError:
        return
    headers = headers_of(envelope, service="agent", traceparent="00-aa-bb-01", by_reference=by_reference)
    message = decode_message(encode_message(envelope, outbox_id=row_id, service="agent", by_reference=by_reference))

    assert envelope.event_type == "a.b"
    assert fields_of(message)[:4] == fields_of(envelope)[:4]
    assert bytes(message.payload) == (b"null" if by_reference else bytes(envelope.payload))
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert (REFERENCE_HEADER in names) == by_reference
    assert dict(headers)["event_id"].decode() == envelope.event_id


@bounded(100)
@given(envelopes, filled_texts, ids)
def test_column_that_speaks_of_another_event_type_is_refused(envelope: Envelope, row_type: str, row_id: int) -> None:
    assume(row_type != envelope.event_type)

    with pytest.raises(EnvelopeError, match=f"row {row_id} "):
        decode_envelope(encode_envelope(envelope), outbox_id=row_id, event_type=row_type)
