"""What is done to the topic by those who are not of this installation, and what a consumer makes of their records."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.case import Case
from tests.model.state import EARLIER, OTHER, State, Step, Transaction, row_of


def stranger_steps(case: Case, state: State) -> Iterator[Step]:
    """Return every step of a stranger: a record of its own, or a theft of what was not committed yet."""
    for partition, records in enumerate(state.topic):
        if len(records) < case.lag:
            for kind in case.strangers:
                sender = "another installation" if kind == OTHER else "an earlier row"
                for i in range(len(case.keys)):
                    after = _with_records(state, partition, (*records, i + kind))
                    yield from case.fault(("a record of", sender, "comes with the id of", i), after)
        for count in range(1, len(records) + 1 if case.steals else 1):
            consumers = tuple(each._replace(current=each.current & ~(1 << partition)) for each in state.consumers)
            after = _with_records(state, partition, records[count:])._replace(consumers=consumers)
            yield from case.fault(("another installation takes", records[:count]), after)


def of_this_installation(case: Case, records: tuple[int, ...]) -> tuple[int, ...]:
    """Set the records of other installations aside: their headers say so, and no row is looked up for them."""
    if not case.strangers or not case.guards.sets_others_aside:
        return records
    return tuple(each for each in records if not each & OTHER)


def matching(case: Case, records: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out what is of an earlier row, which shows once the row is locked."""
    if not case.strangers or not case.guards.matches_event_ids:
        return records
    return tuple(each for each in records if not each & EARLIER)


def done_again(case: Case, records: tuple[int, ...]) -> tuple[int, ...]:
    """Return what is done again of ``records`` that failed together: one record of each row."""
    if not case.strangers:
        return records
    if case.guards.repeats_own_records:
        records = matching(case, records)
    first: dict[int, int] = {}
    for each in records:
        first.setdefault(row_of(each), each)
    return tuple(first.values())


def look_at_strangers(transaction: Transaction, records: tuple[int, ...]) -> Transaction:
    """Note that all named rows are locked, and which rows are changed by no record of their own."""
    changed = {*transaction.deliver, *transaction.wait, *(i for i, _ in transaction.bury)}
    return transaction._replace(locked=_bits({row_of(each) for each in records}), strange=_bits(changed - set(records)))


def _with_records(state: State, partition: int, records: tuple[int, ...]) -> State:
    return state._replace(topic=(*state.topic[:partition], records, *state.topic[partition + 1 :]))


def _bits(rows: set[int]) -> int:
    return sum(1 << i for i in rows)
