"""Blocked keys: events held behind an unfinished one of their key, and their release, few at a time.

Without it every deferred event would come again and again: a key with thousands of events behind a late one would fill
the topic with them. So the transaction that defers events notes their key in ``outbox_blocked_keys``, and the one that
finishes, dead-letters or dismisses what blocks the key makes the next ones due: at most ``WINDOW`` are on their way.
The note is read with the predecessors of a batch, so a batch without blocked keys asks nothing more.

A release that crosses a deferral finds no note, as that is not committed yet. So every deferred row has a due time all
the same, and whatever comes by it, or is finished after it in its key, releases what was left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db.models import QuerySet, Sum

from outbox import lifecycle
from outbox.lifecycle import Status
from outbox.models import BlockedKey
from outbox.storage.conditions import due
from outbox.storage.dialects import id_list
from outbox.storage.queries import BLOCKED_KEYS
from outbox.storage.transitions import RowTransitions

WINDOW: Final = 128
"""At most so many events of a key are on their way, once one of its events was blocked: a part of a batch."""

_RELEASED_AT_ONCE: Final = 512
_SMALLEST_WINDOW: Final = 8
"""Of many keys at once about so many events are released in all, of each key at least so many."""

_COUNTED: Final = 20_000
"""Events of a key are counted up to here, which takes a few milliseconds."""

_SEARCHES_A_STATEMENT: Final = 100

_READY, _HELD, _IN_BACK_OFF = range(3)


@dataclass(frozen=True, slots=True)
class BlockedKeyRows(RowTransitions):
    """What holds the events of blocked keys of a service, and releases them; in the transaction of the caller."""

    def note_blocked(self, blockers: Mapping[str, int], *, joining: Mapping[str, int]) -> int:
        """Note keys, each with the id of the row that blocks it; return about how many events the service holds.

        ``joining`` says, by key, how many events are about to be held that are not pending yet.
        """
        self._note(blockers, joining)
        return int(self._blocked_keys.aggregate(total=Sum("held"))["total"] or 0)

    def release_behind(self, noted: Collection[int], finished: Mapping[str, int]) -> int:
        """Release the next events of those keys of ``noted`` whose blocker is finished; return how many became due.

        ``noted`` are ids of ``BlockedKey``; ``finished`` says, by key, the newest row that the transaction finished.
        """
        if not noted or not finished:
            return 0
        found = self._fetch(
            f"SELECT message_key, blocker_id FROM {BLOCKED_KEYS} WHERE id IN ({id_list(noted)})"
            f" ORDER BY id{self._sql.for_update}"
        )
        return self.release({key: finished[key] for key, blocker in found if finished.get(key, 0) >= blocker})

    def release(self, behind: Mapping[str, int]) -> int:
        """Make those due that are held among the first events of each key; return how many were.

        ``behind`` says, by key, which row the released ones come after. A key whose first event is in a back-off of its
        own stays blocked. What is sent already, in a back-off or locked is left alone.
        """
        window = min(WINDOW, max(_RELEASED_AT_ONCE // max(len(behind), 1), _SMALLEST_WINDOW))
        chosen, blockers = list[int](), dict[str, int]()
        free = set[str]()
        for key, rows in self._first_unfinished(list(behind), window + 1).items():
            if rows and rows[0][1] == _IN_BACK_OFF:
                continue
            held = [row_id for row_id, state in rows[:window] if state == _HELD and row_id > behind[key]]
            chosen += held
            if len(rows) <= window:
                free.add(key)
            elif held:
                blockers[key] = rows[0][0]
        released = self._move(
            lifecycle.WAIT, chosen, f"next_retry_at = {self._sql.now}", also=self._waits, skip_locked=True
        )
        self._note(blockers, {})
        if free:
            self._blocked_keys.filter(message_key__in=free).delete()
        return released

    def release_behind_rows(self, ids: Collection[int]) -> int:
        """Release what waits behind rows that block their keys no more; return how many became due."""
        found = self._fetch(
            f"SELECT message_key, id FROM {self._table}{self._sql.by_primary_key} WHERE id IN ({id_list(ids)})"
            " ORDER BY id DESC"
        )
        return self.release(dict(found))

    @property
    def _blocked_keys(self) -> QuerySet[BlockedKey]:
        return BlockedKey.objects.using(self.route.database).filter(service=self.route.service)

    def _note(self, blockers: Mapping[str, int], joining: Mapping[str, int]) -> None:
        if not blockers:
            return
        held = Counter(self._count_pending(list(blockers))) + Counter(joining)
        has_target = self._connection.features.supports_update_conflicts_with_target
        BlockedKey.objects.using(self.route.database).bulk_create(
            [
                BlockedKey(service=self.route.service, message_key=key, blocker_id=blocker, held=held[key])
                for key, blocker in sorted(blockers.items())  # in one order, so that two of these do not deadlock
            ],
            update_conflicts=True,
            update_fields=["blocker_id", "held"],
            unique_fields=["service", "message_key"] if has_target else None,
        )

    def _count_pending(self, keys: Sequence[str]) -> dict[str, int]:
        """Return how many events of each key are pending, counted by index alone."""
        counted = self._ask_each(
            f"SELECT {{place}}, COUNT(*) FROM (SELECT 1 FROM {self._table}{self._sql.by_secondary_index}"
            f" WHERE message_key = %s AND status = %s LIMIT {_COUNTED}) pending",
            [[key, Status.PENDING] for key in keys],
        )
        return {keys[place]: count for place, count in counted}

    def _first_unfinished(self, keys: Sequence[str], limit: int) -> dict[str, list[tuple[int, int]]]:
        """Return the first ``limit`` unfinished rows of each key in id order, and what each is about.

        Two searches for a key, as its index is in id order for one status only. Where the column's collation takes
        other keys for it, their rows count as if they were its own: fewer are released at a time.
        """
        state = (
            f"CASE WHEN status = %s OR {due(self._sql.now)} THEN {_READY}"
            f" WHEN retry_count = 0 AND interruptions = 0 THEN {_HELD} ELSE {_IN_BACK_OFF} END"
        )
        found = self._ask_each(
            f"SELECT {{place}}, id, {state} FROM {self._table}{self._sql.by_secondary_index}"
            f" WHERE message_key = %s AND status = %s ORDER BY id LIMIT {limit}",
            [[Status.PUBLISHED, key, status] for key in keys for status in lifecycle.UNFINISHED],
        )
        first: dict[str, list[tuple[int, int]]] = {key: [] for key in keys}
        for place, row_id, about in found:
            first[keys[place // len(lifecycle.UNFINISHED)]].append((row_id, about))
        return {key: sorted(rows)[:limit] for key, rows in first.items()}

    def _ask_each(self, search: str, parameters: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what ``search`` finds with each of ``parameters``, ``{place}`` being its number, by few statements."""
        found = []
        for begin in range(0, len(parameters), _SEARCHES_A_STATEMENT):
            some = parameters[begin : begin + _SEARCHES_A_STATEMENT]
            searches = (
                f"SELECT * FROM ({search.format(place=place)}) searched_{place}"
                for place in range(begin, begin + len(some))
            )
            found += self._fetch(" UNION ALL ".join(searches), [value for each in some for value in each])
        return found
