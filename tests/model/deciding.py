"""What a consumer decides about the rows of a batch: by the project's own rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from outbox.consumer.planning import Plan, Readable, make_plan, waits_until
from outbox.declarations.handlers import Delivery, Handler
from outbox.exceptions import TooManyInterruptionsError, UnreadableError
from outbox.lifecycle import UNFINISHED, Status
from outbox.storage.rows import Blocker, Locked
from tests.model.case import Case
from tests.model.state import Row, Transaction, row_of
from tests.model.strangers import look_at_strangers, matching

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
SHORTEST, LONGEST, BACK_OFF = timedelta(milliseconds=200), timedelta(seconds=60), timedelta(hours=1)


def plan_of(case: Case, rows: tuple[Row, ...], records: tuple[int, ...]) -> Transaction:
    """Return what a transaction does with ``records``."""
    known = case.transactions.get((rows, records))
    if known is None:
        transaction = look(case, rows, sorted({row_of(each) for each in matching(case, records)}))
        if case.strangers:
            transaction = look_at_strangers(transaction, records)
        known = case.transactions[rows, records] = transaction
    return known


def look(case: Case, rows: tuple[Row, ...], ids: list[int], *, is_announced: bool = False) -> Transaction:
    """Return what a transaction does with the rows ``ids``; an announced one is tried however often it ended."""
    live = ids if is_announced else [i for i in ids if is_live(case, rows[i])]
    blockers = _blockers(case, rows, live) if case.guards.waits_for_predecessor else {}
    locked = [_locked(case, i, rows[i]) for i in live]
    plan = make_plan(
        locked, blockers, read=lambda row: _read(case, row, is_announced), parks_key=lambda _event_type: case.parks
    )
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
        is_announced=is_announced,
    )


def is_live(case: Case, row: Row) -> bool:
    """Say whether a consumer has anything to do with ``row``."""
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
    return Locked(
        i, "event", case.keys[i], status, row.attempts, 0, case.max_attempts, row.due, "", b"{}", 2, row.interruptions
    )


def _read(case: Case, row: Locked, is_announced: bool) -> Readable:
    if row.id in case.unreadable:
        raise UnreadableError("it cannot be read")
    if 0 < case.max_interruptions <= row.interruptions and not is_announced:
        raise TooManyInterruptionsError(row.interruptions)
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
