"""What a consumer does: it receives, locks, plans, commits and notes, and loses what it has in hand."""

from __future__ import annotations

from collections.abc import Iterator

from outbox import lifecycle
from tests.model.case import Case
from tests.model.deciding import plan_of
from tests.model.state import (
    Announced,
    Blame,
    Consumer,
    Kind,
    State,
    Step,
    Transaction,
    ids_of,
    next_portion,
    put_back,
    with_consumer,
    with_row,
    without,
)
from tests.model.strangers import done_again, of_this_installation
from tests.model.suspects import announce, announced_by, count_end, end_process, set_aside, try_announced, withdraw


def consumer_steps(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    """Return every step of the consumer at ``place``."""
    consumer = state.consumers[place]
    if isinstance(consumer.open, Transaction):
        yield from _end(case, state, place, consumer.open)
    elif isinstance(consumer.open, Blame):
        if not locked >> consumer.open.row & 1:
            yield from _note(case, state, place, consumer.open)
    elif isinstance(consumer.open, Announced):
        if not locked >> consumer.open.row & 1:
            yield withdraw(case, state, place) if consumer.open.is_over else try_announced(case, state, place)
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
        yield from case.fault(("consumer", place, "crashes"), end_process(case, state, place))
        again = _again(case, state, place)
        if again != consumer:
            yield from case.fault(("an outage for consumer", place), with_consumer(state, place, again))
    for partition in range(case.partitions if case.consumers > 1 else 0):
        bit = 1 << partition
        if consumer.owned & bit:
            lost = consumer._replace(
                owned=consumer.owned ^ bit, current=consumer.current & ~bit, suspect=consumer.suspect & ~bit
            )
            after = with_consumer(state, place, lost)
            other = state.consumers[1 - place]
            other = other._replace(owned=other.owned | bit, suspect=other.suspect | consumer.suspect & bit)
            after = with_consumer(after, 1 - place, other)
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
    own = [of_this_installation(case, found) for found in in_hand]
    together = sum((found for each, found in enumerate(own) if not consumer.suspect >> each & 1), ())
    alone = [(i,) for each, found in enumerate(own) if consumer.suspect >> each & 1 for i in found]
    received = consumer._replace(in_hand=in_hand, current=current, todo=(*alone, *([together] if together else [])))
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
    passed = sum(1 << each for each, found in enumerate(consumer.in_hand) if found) & consumer.current
    after = Consumer(consumer.owned, suspect=consumer.suspect & ~passed)
    return with_consumer(state._replace(topic=topic), place, after)


def _begin(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    consumer = state.consumers[place]
    records = consumer.todo[0]
    if case.max_interruptions:
        step = set_aside(case, state, place, locked) or announce(case, state, place, locked)
        if step is not None:
            yield step
            return
    transaction = plan_of(case, state.rows, records)
    if transaction.locked & locked:
        return  # waits until the other one has ended
    if transaction.deliver or transaction.bury or transaction.wait:
        after = consumer._replace(open=transaction)
        does = ("locks", records, "to handle", transaction.deliver)
        yield Step(Kind.SYSTEM, ("consumer", place, *does), with_consumer(state, place, after))
    else:
        after = next_portion(consumer)
        yield Step(Kind.SYSTEM, ("consumer", place, "drops", records), with_consumer(state, place, after))


def _end(case: Case, state: State, place: int, transaction: Transaction) -> Iterator[Step]:
    consumer = state.consumers[place]
    live = (*transaction.deliver, *transaction.wait, *(i for i, _ in transaction.bury))
    killer = next((i for i in transaction.deliver if i in case.killers and not state.rows[i].mended), None)
    if killer is not None:
        row = state.rows[killer]
        after = end_process(case, with_row(state, killer, row._replace(kills=row.kills + 1)), place)
        yield Step(Kind.SYSTEM, ("consumer", place, "is ended by the handler of", killer), after)
        return
    sources = lifecycle.CONSUME.sources
    if case.guards.counts_consumed and any(state.rows[i].status not in sources for i in transaction.deliver):
        after = _fail(case, state, place, state.rows[live[0]].attempts, live[0])
        yield Step(Kind.SYSTEM, ("consumer", place, "finds that rows changed"), after)
    else:
        done, breach = _apply(case, state, transaction)
        after = with_consumer(done, place, next_portion(consumer))
        yield Step(Kind.SYSTEM, ("consumer", place, "commits"), after, breach)
        if case.may_fail(state):
            after = with_consumer(done, place, _again(case, state, place))
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
        if case.max_interruptions:
            after = _lose_connection(case, state, place, live[0])
            yield from case.fault(("consumer", place, "loses its connection, and nobody else does"), after)


def _apply(case: Case, state: State, transaction: Transaction) -> tuple[State, str]:
    """Do what was planned; say which promise an effect broke."""
    rows, effects, breach = list(state.rows), state.effects, ""
    moved = 0
    for i in transaction.wait:
        rows[i] = case.move(rows[i], lifecycle.WAIT, due=False, **_forgets(case))
        moved |= 1 << i
    for i, parks in transaction.bury:
        if i not in case.unreadable and case.consumers == 1 and rows[i].ends < case.max_interruptions:
            breach = f"row {i} died of {rows[i].interruptions} interruptions and was truly at work at {rows[i].ends}"
        rows[i] = case.move(rows[i], lifecycle.BURY, due=True, parks=parks)
        moved |= 1 << i
    if transaction.strange:
        breach = f"rows {ids_of(transaction.strange)} are changed by a record that is not of them"
    for i in transaction.deliver:
        if effects >> i & 1:
            breach = f"a second effect of {i}"
        for j in range(i):
            if case.keys[j] == case.keys[i] and not (effects | transaction.excused) >> j & 1:
                breach = f"the effect of {i} before that of {j}"
        effects |= 1 << i
        rows[i] = case.move(rows[i], lifecycle.CONSUME, due=True, attempts=0, **_forgets(case))
    return put_back(state._replace(rows=tuple(rows), effects=effects), moved), breach


def _fail(case: Case, state: State, place: int, attempts: int | None, row: int) -> State:
    consumer = state.consumers[place]
    records = consumer.todo[0]
    if len(records) == 1:
        is_announced = isinstance(consumer.open, Transaction) and consumer.open.is_announced
        blame = Blame(row, attempts, interruptions=state.rows[row].interruptions, is_announced=is_announced)
        return with_consumer(state, place, consumer._replace(open=blame))
    records = done_again(case, records)
    middle = len(records) // 2
    todo = (*([records[:middle]] if middle else []), records[middle:], *consumer.todo[1:])
    return with_consumer(state, place, consumer._replace(open=(), todo=todo))


def _note(case: Case, state: State, place: int, blame: Blame) -> Iterator[Step]:
    """Write down what happened to an event that failed alone."""
    i, seen = blame.row, blame.attempts
    row = state.rows[i]
    is_known = not (blame.is_stale and case.guards.notes_seen_replay)
    if row.interruptions != blame.interruptions and case.guards.notes_seen_interruptions:
        is_known = False
    if blame.is_interruption:
        what, moved = "counts an interruption of", row
        if is_known and row.attempts == seen:
            count = row.interruptions + 1
            if count >= case.max_interruptions:
                moved = case.move(row, lifecycle.BURY, due=True, parks=case.parks)
            else:
                moved = case.move(row, lifecycle.INTERRUPT, due=False)
            moved = moved if moved is row else moved._replace(interruptions=count, ends=row.ends + 1)
    elif seen is None:
        what, moved = "has wait", case.move(row, lifecycle.WAIT, due=False, **_forgets(case))
    elif seen + 1 >= case.max_attempts:
        what, moved = "buries", row
        if is_known and (row.attempts == seen or not case.guards.buries_seen_attempt):
            moved = case.move(row, lifecycle.BURY, due=True, attempts=row.attempts + 1, parks=case.parks)
    else:
        what, moved = "has come again", row
        if is_known and (row.attempts == seen or not case.guards.notes_seen_attempt):
            moved = case.move(row, lifecycle.RETRY, due=False, attempts=row.attempts + 1, **_forgets(case))
    after = with_consumer(with_row(state, i, moved), place, next_portion(state.consumers[place]))
    yield Step(Kind.SYSTEM, ("consumer", place, what, i), after if moved is row else put_back(after, 1 << i))


def _lose_connection(case: Case, state: State, place: int, row: int) -> State:
    announced = announced_by(state, place)
    if announced is not None:  # it is counted already
        return with_consumer(count_end(state, announced), place, next_portion(state.consumers[place]))
    after = _fail(case, state, place, state.rows[row].attempts, row)
    consumer = after.consumers[place]
    if isinstance(consumer.open, Blame):
        after = with_consumer(after, place, consumer._replace(open=consumer.open._replace(is_interruption=True)))
    return after


def _forgets(case: Case) -> dict[str, int]:
    """Return what becomes of the interruptions of a row that came to an orderly end."""
    return {"interruptions": 0, "ends": 0} if case.guards.forgets_interruptions else {"ends": 0}


def _again(case: Case, state: State, place: int) -> Consumer:
    """Have the batch in hand done again from its beginning, once what was announced is taken back."""
    consumer = state.consumers[place]
    announced = announced_by(state, place) if case.guards.withdraws else None
    own = of_this_installation(case, sum(consumer.in_hand, ()))
    todo = tuple((i,) for i in own) if consumer.suspect or not own else (own,)
    return consumer._replace(todo=todo, open=announced._replace(is_over=True) if announced else ())


def consumer_without(consumer: Consumer, done: int) -> Consumer:
    """Take the records of finished rows out of a consumer's hands."""
    if not consumer.in_hand:
        return consumer
    in_hand = tuple(without(records, done) for records in consumer.in_hand)
    if not any(in_hand):
        return Consumer(consumer.owned, suspect=consumer.suspect)
    todo = tuple(left for records in consumer.todo if (left := without(records, done)))
    is_open = consumer.open and not (isinstance(consumer.open, Blame | Announced) and done >> consumer.open.row & 1)
    return Consumer(consumer.owned, in_hand, consumer.current, todo, consumer.open if is_open else (), consumer.suspect)
