"""What the checks of a database learn of it, and how they ask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from django.db import connections


@dataclass(frozen=True, slots=True)
class Table:
    """What a database says of one table."""

    columns: frozenset[str]
    indexes: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Database:
    """One alias, and what was learned of it."""

    alias: str
    tables: dict[str, Table] = field(default_factory=dict)
    unmigrated: frozenset[str] = frozenset()
    """Labels of apps whose tables are not looked at, as ``migrate`` has yet to work on them."""

    @property
    def where(self) -> str:
        return f"database {self.alias!r}"

    def fetch(self, sql: str, parameters: Collection[Any] = ()) -> list[Any]:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql, list(parameters))
            return list(cursor.fetchall())
