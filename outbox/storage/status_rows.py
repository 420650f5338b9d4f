"""Rows as the admin, ``outbox_status`` and the checks count them: numbers that stay cheap with a million rows.

Nothing here counts a whole table: a count stops at its cap, and ages come from the first entry of an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from outbox.lifecycle import UNFINISHED, Status
from outbox.storage.conditions import DATED, PARKS_ITS_KEY, UNDATED, due
from outbox.storage.dialects import from_db, moment_of, to_db
from outbox.storage.transitions import RowTransitions

COUNT_CAP: Final = 10_000
_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""Time zones differ by a quarter of an hour at least, clocks of hosts by far less."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of rows, exact unless ``capped``: then it is at least ``value``."""

    value: int
    capped: bool = False

    def __str__(self) -> str:
        return f"{self.value:,}+" if self.capped else f"{self.value:,}"


def open_and_closed(looked_at: int, found_open: int, cap: int) -> tuple[Count, Count]:
    """Return how many are open and how many a person closed among ``looked_at`` rows, of ``cap`` * 2 at the most.

    There may be more behind those: then both are capped.
    """
    has_more = looked_at == cap * 2
    closed = looked_at - found_open
    return Count(min(found_open, cap), found_open > cap or has_more), Count(min(closed, cap), closed > cap or has_more)


@dataclass(frozen=True, slots=True)
class StatusRows(RowTransitions):
    """What is counted of the rows of a service; rows of ``foreign_types`` wait for ``rehome_outbox`` and no relay."""

    def count(self, status: Status, *, cap: int = COUNT_CAP) -> Count:
        """Count rows of ``status``."""
        return self._count("status = %s", [status.value], cap=cap)

    def count_consumed(self, *, before: datetime, cap: int) -> Count:
        """Count rows that were consumed before a moment: what pruning deletes."""
        return self._count(
            "status = %s AND consumed_at < %s", [Status.CONSUMED.value, to_db(self._connection, before)], cap=cap
        )

    def count_dead(self, *, cap: int = COUNT_CAP) -> tuple[Count, Count]:
        """Count dead rows that are open, and those that a person has dismissed, among the ``cap`` * 2 that died last.

        The limit stands inside: a long list of dismissed rows is not read through for the open ones.
        """
        looked_at, found = self._fetch(
            "SELECT COUNT(*), COUNT(CASE WHEN resolved_at IS NULL THEN 1 END) FROM (SELECT resolved_at"
            f" FROM {self._table} WHERE status = %s ORDER BY next_retry_at DESC, id DESC LIMIT %s) newest",
            [Status.DEAD.value, cap * 2],
        )[0]
        return open_and_closed(looked_at, found, cap)

    def parks_a_key(self, *, cap: int = COUNT_CAP) -> bool:
        """Say whether one of the ``cap`` * 2 rows that died last parks its key."""
        condition, parameters = PARKS_ITS_KEY
        found = self._fetch(
            f"SELECT COUNT(CASE WHEN {condition} THEN 1 END) FROM (SELECT status, parks_key FROM {self._table}"
            " WHERE status = %s ORDER BY next_retry_at DESC, id DESC LIMIT %s) newest",
            [*parameters, Status.DEAD.value, cap * 2],
        )
        return bool(found[0][0])

    def count_waiting_behind(self, key: str, row_id: int, *, cap: int) -> Count:
        """Count pending rows of ``key`` behind one that blocks it."""
        waiting = "message_key = %s AND status = %s AND id > %s"
        return self._count(waiting, [key, Status.PENDING.value, row_id], cap=cap)

    def not_due(self) -> list[int]:
        """Return the ids of all pending rows whose time has not come: they wait, or are in a back-off."""
        own, foreign_types = self._own
        found = self._fetch(
            f"SELECT id FROM {self._table} WHERE status = %s AND NOT {due(self._sql.now)}{own} ORDER BY id",
            [Status.PENDING.value, *foreign_types],
        )
        return [row[0] for row in found]

    def count_foreign(self, *, cap: int = COUNT_CAP) -> Count:
        """Count unfinished rows of foreign types among the oldest ``cap`` * 2 of each status."""
        if not self.foreign_types:
            return Count(0)
        is_foreign = self._sql.is_one_of(self._type, self.foreign_types)
        counts = [
            self._fetch(
                f"SELECT COUNT(*), COUNT(CASE WHEN {is_foreign} THEN 1 END) FROM (SELECT {self._type}"
                f" FROM {self._table} WHERE status = %s ORDER BY next_retry_at, id LIMIT %s) oldest",
                [*self.foreign_types, status.value, cap * 2],
            )[0]
            for status in UNFINISHED
        ]
        found = sum(foreign for _, foreign in counts)
        is_capped = found > cap or (found > 0 and any(looked_at == cap * 2 for looked_at, _ in counts))
        return Count(min(found, cap), is_capped)

    def count_unfinished_foreign(self, *, cap: int = COUNT_CAP) -> Count:
        """Count unfinished rows of foreign types, however many others come before them."""
        if not self.foreign_types:
            return Count(0)
        is_foreign = self._sql.is_one_of(self._type, self.foreign_types)
        return self._count(f"status IN (%s, %s) AND {is_foreign}", [*UNFINISHED, *self.foreign_types], cap=cap)

    def count_ahead_of_time(self, *, cap: int = COUNT_CAP) -> Count:
        """Count pending rows that are due in the future though nobody put them off.

        A session in another time zone wrote them: it takes its local time for that of the outbox, which is UTC. Nothing
        is published for later. So they are as they were inserted, or were inserted or changed in the future. Those that
        are due last are looked at, ``cap`` of them.
        """
        created_at, updated_at = map(self._sql.dated.format, ("created_at", "updated_at"))
        late = to_db(self._connection, self.now() + _CLOCKS_DIFFER)
        looked_at, found = self._fetch(
            f"SELECT COUNT(*), COUNT(CASE WHEN {created_at} > %s OR {updated_at} > %s"
            f" OR (retry_count = 0 AND put_back_count = 0 AND COALESCE({updated_at} <= {created_at}, TRUE)) THEN 1 END)"
            f" FROM (SELECT created_at, updated_at, retry_count, put_back_count FROM {self._table}"
            " WHERE status = %s AND next_retry_at > %s ORDER BY next_retry_at DESC LIMIT %s) last_due",
            [late, late, Status.PENDING.value, late, cap],
        )[0]
        return Count(found, found > 0 and looked_at == cap)

    def oldest_due_age(self) -> timedelta | None:
        """Return how long ago the row was created that has been due the longest; None when nothing is due.

        A row that does not say when it was created is as old as its due time.
        """
        now, created_at, due_at = self._sql.now, *map(self._sql.dated.format, ("created_at", "next_retry_at"))
        own, foreign_types = self._own
        found = self._fetch(
            f"SELECT COALESCE({created_at}, {due_at}), {now} FROM {self._table} WHERE status = %s"
            f" AND {due(now)}{own} ORDER BY next_retry_at, id LIMIT 1",
            [Status.PENDING.value, *foreign_types],
        )
        if not found:
            return None
        moment = moment_of(found[0][0])
        return timedelta(0) if moment is None else max(from_db(found[0][1]) - moment, timedelta(0))

    def is_stalled(self, *, longer_than: timedelta, redeliver_after: timedelta) -> bool:
        """Say whether a row is stalled: it has been due, or on its way, for longer than that.

        Both are answered by the first entry of an index. A published row is due again when it is time to redeliver it,
        so that time, less ``redeliver_after``, is when it was sent, unless it was published later: a relay of other
        software leaves its due time as it was. A row without a due time is due since it was changed, and is on its way
        since it was published. One that was sent again and again is due again later than that: it is looked for by
        itself.
        """
        due_before = self.now() - longer_than
        sent_due_before = due_before + redeliver_after
        dated = f"{DATED} AND next_retry_at < %s"
        own, foreign_types = self._own
        looks = (
            (Status.PENDING, dated, [due_before]),
            (Status.PENDING, f"{UNDATED} AND updated_at < %s", [due_before]),
            (
                Status.PUBLISHED,
                f"{dated} AND (published_at IS NULL OR published_at < %s)",
                [sent_due_before, due_before],
            ),
            (Status.PUBLISHED, f"{UNDATED} AND COALESCE(published_at, updated_at) < %s", [due_before]),
        )
        return any(
            self._count(
                f"status = %s AND {look}{own}",
                [status.value, *(to_db(self._connection, moment) for moment in moments), *foreign_types],
                cap=1,
            ).value
            for status, look, moments in looks
        ) or self._is_sent_again_in_vain(sent_before=due_before, due_after=sent_due_before)

    def _is_sent_again_in_vain(self, *, sent_before: datetime, due_after: datetime) -> bool:
        """Say whether a published row that is due after ``due_after`` was sent before ``sent_before``.

        Such a row was sent again before, and waits longer than others. Those that are due last are looked at.
        """
        own, foreign_types = self._own
        found = self._fetch(
            f"SELECT COUNT(CASE WHEN COALESCE({self._sql.dated.format('published_at')}, updated_at) < %s THEN 1 END)"
            f" FROM (SELECT published_at, updated_at FROM {self._table} WHERE status = %s AND next_retry_at >= %s{own}"
            " ORDER BY next_retry_at DESC LIMIT %s) last_due",
            [
                to_db(self._connection, sent_before),
                Status.PUBLISHED.value,
                to_db(self._connection, due_after),
                *foreign_types,
                COUNT_CAP,
            ],
        )
        return bool(found[0][0])

    @property
    def _own(self) -> tuple[str, Sequence[str]]:
        """Return the condition that a row is of no foreign type, to be put behind others, and its parameters."""
        if not self.foreign_types:
            return "", ()
        return f" AND {self._sql.is_none_of(self._type, self.foreign_types)}", self.foreign_types

    def _count(self, condition: str, parameters: Iterable[Any], *, cap: int) -> Count:
        """Count rows, looking at ``cap`` + 1 of them at the most."""
        found = self._fetch(
            f"SELECT COUNT(*) FROM (SELECT 1 FROM {self._table} WHERE {condition} LIMIT %s) counted",
            [*parameters, cap + 1],
        )[0][0]
        return Count(min(found, cap), found > cap)
