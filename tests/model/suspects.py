"""What a consumer does with events that may end its process or its connection: one by one, each written down before."""

from __future__ import annotations

from outbox import lifecycle
from outbox.lifecycle import UNFINISHED
from tests.model.case import Case
from tests.model.deciding import is_live, look, plan_of
from tests.model.state import (
    Announced,
    Blame,
    Consumer,
    Kind,
    State,
    Step,
    Transaction,
    next_portion,
    put_back,
    with_consumer,
    with_row,
)
from tests.model.strangers import matching


def set_aside(case: Case, state: State, place: int, locked: int) -> Step | None:
    """Leave rows that were interrupted before, and what follows them in their keys, to portions of their own."""
    consumer = state.consumers[place]
    records = matching(case, consumer.todo[0])
    if len(set(records)) < 2 or sum(1 << i for i in set(records)) & locked:
        return None
    suspects = sorted({i for i in records if state.rows[i].interruptions and is_live(case, state.rows[i])})
    if not suspects:
        return None
    aside = {j for i in suspects for j in records if j >= i and case.keys[j] == case.keys[i]}
    rest = tuple(i for i in records if i not in aside)
    behind = tuple(sorted(aside - set(suspects)))
    todo = (*([rest] if rest else []), *[(i,) for i in suspects], *([behind] if behind else []), *consumer.todo[1:])
    label = ("consumer", place, "sets aside", tuple(suspects))
    return Step(Kind.SYSTEM, label, with_consumer(state, place, consumer._replace(todo=todo)))


def announce(case: Case, state: State, place: int, locked: int) -> Step | None:
    """Write down that a suspect event is at work, before it is."""
    consumer = state.consumers[place]
    records = matching(case, consumer.todo[0])
    if not records:
        return None
    i = records[0]
    row = state.rows[i]
    is_suspect = row.interruptions or consumer.suspect >> ord(case.keys[i]) % case.partitions & 1
    if len(set(records)) > 1 or not is_suspect or locked >> i & 1 or not case.guards.announces:
        return None
    if not plan_of(case, state.rows, records).deliver:
        return None  # it is done, dies or waits: no handler is called
    count = row.interruptions + 1
    noted = with_row(state, i, case.move(row, lifecycle.INTERRUPT, due=False, interruptions=count))
    after = with_consumer(put_back(noted, 1 << i), place, consumer._replace(open=Announced(i, row.attempts, count)))
    return Step(Kind.SYSTEM, ("consumer", place, "announces", i), after)


def try_announced(case: Case, state: State, place: int) -> Step:
    """Try what was announced, unless it is another attempt by now."""
    consumer = state.consumers[place]
    announced: Announced = consumer.open  # type: ignore[assignment]
    i = announced.row
    if not is_as_announced(state, announced) and (
        case.guards.tries_as_announced or state.rows[i].status not in UNFINISHED
    ):
        return Step(Kind.SYSTEM, ("consumer", place, "leaves", i), with_consumer(state, place, next_portion(consumer)))
    transaction = look(case, state.rows, [i], is_announced=True)
    after = with_consumer(state, place, consumer._replace(open=transaction))
    return Step(Kind.SYSTEM, ("consumer", place, "locks", i, "to try what it announced"), after)


def withdraw(case: Case, state: State, place: int) -> Step:
    """Take back what was announced, as its try came to no end and that was not its doing."""
    consumer = state.consumers[place]
    announced: Announced = consumer.open  # type: ignore[assignment]
    i = announced.row
    after = with_consumer(state, place, consumer._replace(open=()))
    if is_as_announced(state, announced):
        row = case.move(state.rows[i], lifecycle.WAIT, due=True, interruptions=0, ends=0)
        after = put_back(with_row(after, i, row), 1 << i)
    return Step(Kind.SYSTEM, ("consumer", place, "withdraws", i), after)


def is_as_announced(state: State, announced: Announced) -> bool:
    """Say whether it is still the attempt that was announced."""
    row = state.rows[announced.row]
    is_same = (row.attempts, row.interruptions) == (announced.attempts, announced.interruptions)
    return row.status in UNFINISHED and is_same and not announced.is_stale


def announced_by(state: State, place: int) -> Announced | None:
    """Return what a consumer has announced and not brought to an end."""
    at = state.consumers[place].open
    if isinstance(at, Announced):
        return at
    if isinstance(at, Blame):
        attempts = state.rows[at.row].attempts if at.attempts is None else at.attempts
        return Announced(at.row, attempts, at.interruptions, at.is_stale) if at.is_announced else None
    if isinstance(at, Transaction) and at.is_announced:
        i = at.locked.bit_length() - 1
        return Announced(i, state.rows[i].attempts, state.rows[i].interruptions)
    return None


def end_process(case: Case, state: State, place: int) -> State:
    """End a consumer; another one takes its place and its partitions."""
    owned = state.consumers[place].owned
    suspect = owned if case.max_interruptions and case.guards.suspects_partitions else 0
    return with_consumer(count_end(state, announced_by(state, place)), place, Consumer(owned, suspect=suspect))


def count_end(state: State, announced: Announced | None) -> State:
    """Note that a process or connection truly ended while an event was at work alone."""
    if announced is None or not is_as_announced(state, announced):
        return state
    row = state.rows[announced.row]
    return with_row(state, announced.row, row._replace(ends=row.ends + 1))
