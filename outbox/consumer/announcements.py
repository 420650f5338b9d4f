"""The suspect events of one consumer whose interruption was counted before their try, which has not ended yet."""

from __future__ import annotations

import msgspec

from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.rows import Locked


class Announcements:
    """Those of one process, by the ids of their rows."""

    def __init__(self, repository: ConsumerRows) -> None:
        self._repository = repository
        self._rows: dict[int, Locked] = {}

    def note(self, row: Locked) -> Locked:
        """Remember that ``row`` was announced; return it as it is since then."""
        announced = msgspec.structs.replace(row, interruptions=row.interruptions + 1)
        self._rows[row.id] = announced
        return announced

    def ended(self, row: Locked) -> None:
        """Forget a row whose try came to an end that is written down."""
        self._rows.pop(row.id, None)

    def withdraw(self) -> None:
        """Set the counts back of those whose tries came to no end, which was not their doing.

        :raises DatabaseError: the database is away; the next call does the rest.
        """
        for row in list(self._rows.values()):
            if self._repository.forget_interruptions(row):
                del self._rows[row.id]
