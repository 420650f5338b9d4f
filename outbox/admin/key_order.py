"""The order of a key among dead events: which of them come first, and which would overtake an older one.

A dead event that parks nothing holds nobody back. So of two dead events of one key, the later one takes effect first
when it is replayed first, or alone. Each key is read along ``*_ob_key`` (key, status, id): the smallest ids first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outbox.admin.filters import OPEN, DeadFilter
from outbox.declarations.routes import ServiceRoute
from outbox.registry.catalog import service_models
from outbox.storage.positions import Gap
from outbox.storage.querysets import rows_of


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """The dead events of one service, by key and id."""

    route: ServiceRoute

    def oldest(self, ids: Sequence[int], matching: DeadFilter) -> list[int]:
        """Return as many ids as ``ids`` has, of the same keys: of each key the oldest dead ones that match, no gaps.

        So rounds that take a part of many dead events keep the order of each key: what a round leaves is younger than
        what it takes.
        """
        taken: list[int] = []
        for key in dict.fromkeys(self._keys(ids).values()):
            if len(taken) >= len(ids):
                break
            taken += self._first(key, matching, limit=len(ids) - len(taken))
        return sorted(taken)

    def overtaken(self, ids: Collection[int]) -> dict[int, int]:
        """Return, by id, those of ``ids`` behind an older open dead event of their key that is not one of them.

        The value is the id of the oldest such event.
        """
        by_key: dict[str, set[int]] = {}
        for row_id, key in self._keys(ids).items():
            by_key.setdefault(key, set()).add(row_id)
        found: dict[int, int] = {}
        for key, chosen in by_key.items():
            # Among one more than were chosen there is one that was not, if there is any.
            first = self._first(key, DeadFilter(state=OPEN), limit=len(chosen) + 1)
            left_out = min(set(first) - chosen, default=None)
            if left_out is not None:
                found |= {row_id: left_out for row_id in chosen if row_id > left_out}
        return found

    def _keys(self, ids: Collection[int]) -> dict[int, str]:
        """Return the key of each of ``ids`` that has a row, in the order of ``ids``."""
        rows = rows_of(service_models()[self.route.service], self.route.database).filter(pk__in=ids)
        keys = dict(rows.values_list("pk", "message_key"))
        return {row_id: keys[row_id] for row_id in ids if row_id in keys}

    def _first(self, key: str, matching: DeadFilter, *, limit: int) -> list[int]:
        """Return the ``limit`` smallest ids of dead events of ``key`` that match."""
        scan = matching.scan_of_key(self.route, key)
        ids: list[int] = []
        gap: Gap | None = None
        while True:
            part = scan.read(gap, upward=True, limit=limit - len(ids))
            ids += [row.position.id for row in part.rows]
            if part.stopped is None or len(ids) >= limit:
                return ids
            gap = Gap(part.stopped.position, below=False)
