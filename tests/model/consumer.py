"""What a consumer does: it receives, locks, plans, commits and notes, and loses what it has in hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from outbox import lifecycle
from outbox.exceptions import UnreadableError
from outbox.handlers import Delivery, Handler
from outbox.lifecycle import UNFINISHED, Status
from outbox.planning import Plan, Readable, make_plan, waits_until
from outbox.rows import Blocker, Locked
from tests.model.case import Case
from tests.model.state import (
    Blame,
    Consumer,
    Kind,
    Row,
    State,
    Step,
    Transaction,
    put_back,
    with_consumer,
    with_row,
    without,
)

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
SHORTEST, LONGEST, BACK_OFF = timedelta(milliseconds=200), timedelta(seconds=60), timedelta(hours=1)


def consumer_steps(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    """Return every step of the consumer at ``place``."""
    consumer = state.consumers[place]
    if isinstance(consumer.open, Transaction):
        yield from _end(case, state, place, consumer.open)
    elif isinstance(consumer.open, Blame):
        if not locked >> consumer.open.row & 1:
            yield from _note(case, state, place, consumer.open)
    elif consumer.todo:
        yield from _begin(case, state, place, locked)
    elif consumer.in_hand:
        yield Step(Kind.SYSTEM, ("consumer", place, "commits offsets"), _commit_offsets(case, state, place))
    else:
        yield from _receive(case, state, place)
    if case.may_fail(state):
        yield from _disturb(case, state, place)


def _disturb(case: Case, state: State, place: int) -> Iterator[Step]:
    consumer = state.consumers[place]
    if consumer.in_hand:
        after = with_consumer(state, place, Consumer(consumer.owned))
        yield from case.fault(("consumer", place, "crashes"), after)
        again = _again(consumer)
        if again != consumer:
            yield from case.fault(("an outage for consumer", place), with_consumer(state, place, again))
    for partition in range(case.partitions if case.consumers > 1 else 0):
        bit = 1 << partition
        if consumer.owned & bit:
            lost = consumer._replace(owned=consumer.owned ^ bit, current=consumer.current & ~bit)
            after = with_consumer(state, place, lost)
            other = state.consumers[1 - place]
            after = with_consumer(after, 1 - place, other._replace(owned=other.owned | bit))
            yield from case.fault(("consumer", place, "loses partition", partition), after)


def _receive(case: Case, state: State, place: int) -> Iterator[Step]:
    consumer = state.consumers[place]
    in_hand = tuple(
        records[: case.batch] if consumer.owned >> partition & 1 else ()
        for partition, records in enumerate(state.topic)
    )
    records = sum(in_hand, ())
    if not records:
        return
    current = sum(1 << partition for partition, found in enumerate(in_hand) if found)
    received = consumer._replace(in_hand=in_hand, current=current, todo=(records,))
    after = with_consumer(state, place, received)
    if not case.guards.commits_after_database:
        after = with_consumer(_commit_offsets(case, after, place), place, received._replace(current=0))
    yield Step(Kind.SYSTEM, ("consumer", place, "receives", records), after)


def _commit_offsets(case: Case, state: State, place: int) -> State:
    """Commit what is in hand, as far as its partitions stayed with this consumer."""
    consumer = state.consumers[place]
    topic = tuple(
        records[len(consumer.in_hand[partition]) :] if consumer.current >> partition & 1 else records
        for partition, records in enumerate(state.topic)
    )
    return with_consumer(state._replace(topic=topic), place, Consumer(consumer.owned))


def _begin(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    consumer = state.consumers[place]
    records = consumer.todo[0]
    transaction = _transaction(case, state.rows, records)
    if transaction.locked & locked:
        return  # waits until the other one has ended
    if transaction.deliver or transaction.bury or transaction.wait:
        after = consumer._replace(open=transaction)
        does = ("locks", records, "to handle", transaction.deliver)
        yield Step(Kind.SYSTEM, ("consumer", place, *does), with_consumer(state, place, after))
    else:
        after = _next(consumer)
        yield Step(Kind.SYSTEM, ("consumer", place, "drops", records), with_consumer(state, place, after))


def _end(case: Case, state: State, place: int, transaction: Transaction) -> Iterator[Step]:
    consumer = state.consumers[place]
    live = (*transaction.deliver, *transaction.wait, *(i for i, _ in transaction.bury))
    sources = lifecycle.CONSUME.sources
    if case.guards.counts_consumed and any(state.rows[i].status not in sources for i in transaction.deliver):
        after = _fail(case, state, place, state.rows[live[0]].attempts, live[0])
        yield Step(Kind.SYSTEM, ("consumer", place, "finds that rows changed"), after)
    else:
        done, breach = _apply(case, state, transaction)
        after = with_consumer(done, place, _next(consumer))
        yield Step(Kind.SYSTEM, ("consumer", place, "commits"), after, breach)
        if case.may_fail(state):
            after = with_consumer(done, place, _again(consumer))
            yield from case.fault(("consumer", place, "commits and does not learn it"), after, breach)
        if not case.guards.is_atomic:
            after = with_consumer(state._replace(effects=done.effects), place, Consumer(consumer.owned))
            yield from case.fault(("consumer", place, "crashes between effect and status"), after, breach)
    if any(i in case.poison and not state.rows[i].mended for i in transaction.deliver):
        after = _fail(case, state, place, state.rows[live[0]].attempts, live[0])
        yield Step(Kind.FAILURE, ("consumer", place, "fails"), after)
    if case.may_fail(state):
        seen = None if case.guards.excuses_lost_locks else state.rows[live[0]].attempts
        yield from case.fault(("consumer", place, "loses its locks"), _fail(case, state, place, seen, live[0]))


def _apply(case: Case, state: State, transaction: Transaction) -> tuple[State, str]:
    """Do what was planned; say which promise an effect broke."""
    rows, effects, breach = list(state.rows), state.effects, ""
    moved = 0
    for i in transaction.wait:
        rows[i] = case.move(rows[i], lifecycle.WAIT, due=False)
        moved |= 1 << i
    for i, parks in transaction.bury:
        rows[i] = case.move(rows[i], lifecycle.BURY, due=True, parks=parks)
        moved |= 1 << i
    for i in transaction.deliver:
        if effects >> i & 1:
            breach = f"a second effect of {i}"
        for j in range(i):
            if case.keys[j] == case.keys[i] and not (effects | transaction.excused) >> j & 1:
                breach = f"the effect of {i} before that of {j}"
        effects |= 1 << i
        rows[i] = case.move(rows[i], lifecycle.CONSUME, due=True, attempts=0)
    return put_back(state._replace(rows=tuple(rows), effects=effects), moved), breach


def _fail(case: Case, state: State, place: int, attempts: int | None, row: int) -> State:
    consumer = state.consumers[place]
    records = consumer.todo[0]
    if len(records) == 1:
        return with_consumer(state, place, consumer._replace(open=Blame(row, attempts)))
    middle = len(records) // 2
    todo = (records[:middle], records[middle:], *consumer.todo[1:])
    return with_consumer(state, place, consumer._replace(open=(), todo=todo))


def _note(case: Case, state: State, place: int, blame: Blame) -> Iterator[Step]:
    """Write down what happened to an event that failed alone."""
    i, seen, is_stale = blame
    row = state.rows[i]
    is_known = not (is_stale and case.guards.notes_seen_replay)
    if seen is None:
        what, moved = "has wait", case.move(row, lifecycle.WAIT, due=False)
    elif seen + 1 >= case.max_attempts:
        what, moved = "buries", row
        if is_known and (row.attempts == seen or not case.guards.buries_seen_attempt):
            moved = case.move(row, lifecycle.BURY, due=True, attempts=row.attempts + 1, parks=case.parks)
    else:
        what, moved = "has come again", row
        if is_known and (row.attempts == seen or not case.guards.notes_seen_attempt):
            moved = case.move(row, lifecycle.RETRY, due=False, attempts=row.attempts + 1)
    after = with_consumer(with_row(state, i, moved), place, _next(state.consumers[place]))
    yield Step(Kind.SYSTEM, ("consumer", place, what, i), after if moved is row else put_back(after, 1 << i))


# --- what it decides, by the project's own rules -----------------------------------------------------------------


def _transaction(case: Case, rows: tuple[Row, ...], records: tuple[int, ...]) -> Transaction:
    known = case.transactions.get((rows, records))
    if known is None:
        known = case.transactions[rows, records] = _look(case, rows, sorted(set(records)))
    return known


def _look(case: Case, rows: tuple[Row, ...], ids: list[int]) -> Transaction:
    live = [i for i in ids if _is_live(case, rows[i])]
    blockers = _blockers(case, rows, live) if case.guards.waits_for_predecessor else {}
    locked = [_locked(case, i, rows[i]) for i in live]
    plan = make_plan(locked, blockers, read=lambda row: _read(case, row), parks_key=lambda _event_type: case.parks)
    _check_pauses(plan)
    excused = 0
    for i, row in enumerate(rows):
        if row.status is None or (row.status is Status.DEAD and not row.parks):
            excused |= 1 << i
    return Transaction(
        locked=sum(1 << i for i in ids),
        deliver=tuple(readable.delivery.outbox_id for readable in plan.deliver),
        bury=tuple((burial.row.id, burial.parks_key) for burial in plan.bury),
        wait=tuple(row.id for row, _ in plan.wait),
        excused=excused,
    )


def _is_live(case: Case, row: Row) -> bool:
    if not case.guards.looks_at_status:
        return True
    return row.status in UNFINISHED and (row.due or row.status is Status.PUBLISHED)


def _blockers(case: Case, rows: tuple[Row, ...], live: list[int]) -> dict[str, Blocker]:
    """Return the oldest unfinished row of each key before the last of ``live``, and not one of them."""
    blockers: dict[str, Blocker] = {}
    for i in range(max(live, default=0)):
        row, key = rows[i], case.keys[i]
        holds = row.status in UNFINISHED or (row.status is Status.DEAD and row.parks)
        if row.status is Status.DEAD and not case.guards.waits_for_parked:
            holds = False
        if holds and i not in live and key not in blockers and key in {case.keys[j] for j in live}:
            pauses = row.status is Status.PENDING and not row.due
            blockers[key] = Blocker(i, NOW + BACK_OFF if pauses else None, timedelta(0))
    return blockers


def _locked(case: Case, i: int, row: Row) -> Locked:
    status = row.status or Status.PENDING
    return Locked(i, "event", case.keys[i], status, row.attempts, 0, case.max_attempts, row.due, "", "{}", 2)


def _read(case: Case, row: Locked) -> Readable:
    if row.id in case.unreadable:
        raise UnreadableError("it cannot be read")
    delivery = Delivery(row.id, str(row.id), row.event_type, "v1", row.message_key, "", _PAYLOAD, 1, "default")
    return Readable(delivery, _HANDLER)


class _Nothing(msgspec.Struct):
    """A payload."""


_PAYLOAD: Final = _Nothing()
_HANDLER: Final = Handler(lambda _delivery: None, batch=False)


def _check_pauses(plan: Plan) -> None:
    """Make sure of what ``due=False`` stands for: what waits is due later than now, and later than any claim."""
    for _, blocker in plan.wait:
        until = waits_until(blocker, now=NOW, shortest=SHORTEST, longest=LONGEST)
        if until <= NOW:
            raise AssertionError(f"an event that waits for {blocker} is due again at once")


def _again(consumer: Consumer) -> Consumer:
    """Have the batch in hand done again from its beginning."""
    return consumer._replace(todo=(sum(consumer.in_hand, ()),), open=())


def _next(consumer: Consumer) -> Consumer:
    return consumer._replace(todo=consumer.todo[1:], open=())


def consumer_without(consumer: Consumer, done: int) -> Consumer:
    """Take the records of finished rows out of a consumer's hands."""
    if not consumer.in_hand:
        return consumer
    in_hand = tuple(without(records, done) for records in consumer.in_hand)
    if not any(in_hand):
        return Consumer(consumer.owned)
    todo = tuple(left for records in consumer.todo if (left := without(records, done)))
    is_open = consumer.open and not (isinstance(consumer.open, Blame) and done >> consumer.open.row & 1)
    return Consumer(consumer.owned, in_hand, consumer.current, todo, consumer.open if is_open else ())
