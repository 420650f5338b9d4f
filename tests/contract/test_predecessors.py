"""What goes before an event, compared with what all rows say: thousands of small random tables on every database.

An optimizer that answers a search by a short cut of its own may answer wrongly, and only on some tables; the search
cannot be read off to be right. MySQL 9.7 took the smallest id of a key before it had applied the conditions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
from django.db import connections, transaction

from outbox.fields import key_collation
from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from tests import factories
from tests.plans import locked
from tests.toys import NOTE, OTHER, PARKED

FOREIGN: Final = ("other.first", "other.second", NOTE.upper(), f"{OTHER} ")
"""Two of them are taken for own ones by a collation that ignores case or blanks at the end."""
KEYS: Final = (
    "k",
    "K",
    "k-1",
    "k-10",
    "k ",
    "k  ",
    "k 1",
    "k  1",
    "ä",
    "Ä",
    "a\u0308",
    "ss",
    "ß",
    "k\u200b",
    "k\u0301",
    "\U0001f600",
)
"""Keys that are easily taken for each other: a collation may ignore case, accents, blanks or what is not seen."""
WEIGHTS: Final = (("consumed",), ("pending",), ("published",), ("pending", "published"), ("dead",), tuple(Status))
"""Which statuses most rows of a table have."""
TABLES: Final = 250
BATCHES: Final = 16
"""Of each table: 4,000 questions a database."""
LARGE_TABLES: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """The columns that say whether a row goes before another."""

    id: int
    key: str
    event_type: str
    status: str
    parks_key: bool

    @property
    def is_in_the_way(self) -> bool:
        return self.status in {"pending", "published"} or (self.status == "dead" and self.parks_key)


def small_table(rand: random.Random) -> list[Row]:
    """Return up to 40 rows of a few keys, often many in a row of one status."""
    keys = rand.sample(KEYS, rand.randint(1, 5))
    row_id, rows = rand.randint(1, 10**9), list[Row]()
    statuses = rand.choice(WEIGHTS)
    foreign_share = rand.choice((0.0, 0.0, 0.3))
    for _ in range(rand.randint(1, 40)):
        if rand.random() < 0.1:
            statuses = rand.choice(WEIGHTS)
        status = rand.choice(statuses if rand.random() < 0.9 else tuple(Status))
        event_type = rand.choice(FOREIGN if rand.random() < foreign_share else (NOTE, OTHER, PARKED))
        rows.append(Row(row_id, rand.choice(keys), event_type, str(status), rand.random() < 0.5))
        row_id += rand.choice((1, 1, 1, rand.randint(2, 1000)))
    return rows


def large_table(rand: random.Random) -> list[Row]:
    """Return as many keys as a full batch has: from 200 on MySQL and MariaDB estimate them in another way."""
    keys = [f"k-{number}" for number in range(rand.choice((150, 450)))]
    return [
        Row(number, rand.choice(keys), NOTE, rand.choice(("pending", "published", "consumed")), False)
        for number in range(1, 1_500)
    ]


def batches(rand: random.Random, rows: Sequence[Row], count: int) -> Iterator[list[Row]]:
    """Return what a consumer may have locked: some rows, in the order of their ids, the last of them more often."""
    for _ in range(count):
        among = rand.choice((rows, rows[-3:], [row for row in rows if row.status == "published"] or rows))
        yield sorted(rand.sample(among, rand.randint(1, min(len(among), 500))), key=lambda row: row.id)


def naive(rows: Sequence[Row], batch: Sequence[Row]) -> dict[str, tuple[int, bool]]:
    """Return, by key, the oldest row in the way before the last of ``batch``, and whether it is published."""
    found: dict[str, tuple[int, bool]] = {}
    for row in rows:
        if row.id >= batch[-1].id:
            break
        if row.is_in_the_way and row not in batch and row.event_type not in FOREIGN:
            found.setdefault(row.key, (row.id, row.status == "published"))
    return {key: value for key, value in found.items() if key in {row.key for row in batch}}


def fill(alias: str, rows: Sequence[Row]) -> None:
    values = [value for row in rows for value in (row.id, row.key, row.event_type, row.status, row.parks_key)]
    tuples = ", ".join(["(%s, %s, %s, %s, %s, 'x')"] * len(rows))
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {factories.TABLE} (id, message_key, event_type, status, parks_key, payload) VALUES {tuples}",
            values,
        )


def compare(repository: OutboxRepository, rows: Sequence[Row], asked: Iterator[list[Row]]) -> None:
    alias = repository.route.database
    with transaction.atomic(using=alias):
        fill(alias, rows)
        for batch in asked:
            found = repository.predecessors([locked(row.id, row.key, row.event_type) for row in batch]).blockers
            answer = {key: (blocker.id, blocker.is_sent) for key, blocker in found.items()}
            assert answer == naive(rows, batch), (rows, batch)
        transaction.set_rollback(True, using=alias)


@pytest.fixture
def repository(alias: str) -> OutboxRepository:
    return factories.repository(foreign_types=FOREIGN)


def test_predecessors_of_small_tables_are_those_that_all_rows_say(repository: OutboxRepository) -> None:
    rand = random.Random(12)
    for _ in range(TABLES):
        rows = small_table(rand)
        compare(repository, rows, batches(rand, rows, BATCHES))


@pytest.fixture
def careless(database_alias: str) -> Iterator[None]:
    """Give the columns of keys and types a collation that ignores case, accents and blanks at the end."""
    types = {"message_key": "varchar(128)", "event_type": "varchar(64)"}

    def alter(collation: str) -> None:
        with connections[database_alias].cursor() as cursor:
            for column, type_ in types.items():
                cursor.execute(
                    f"ALTER TABLE {factories.TABLE} MODIFY {column} {type_} CHARACTER SET utf8mb4"
                    f" COLLATE {collation} NOT NULL"
                )

    alter("utf8mb4_general_ci")
    yield
    alter(key_collation(connections[database_alias]))


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_predecessors_are_those_of_the_very_key_whatever_the_collation(
    careless: None, repository: OutboxRepository
) -> None:
    rand = random.Random(56)
    for _ in range(TABLES // 5):
        rows = small_table(rand)
        compare(repository, rows, batches(rand, rows, BATCHES))


def test_predecessors_of_many_keys_are_those_that_all_rows_say(repository: OutboxRepository) -> None:
    rand = random.Random(34)
    for _ in range(LARGE_TABLES):
        rows = large_table(rand)
        compare(repository, rows, batches(rand, rows, BATCHES))


def test_predecessors_before_a_published_event_are_found(repository: OutboxRepository) -> None:
    """Ten pending events of a key and a published one behind them: MySQL 9.7 found none of them."""
    rows = [Row(row_id, "k", NOTE, "pending" if row_id <= 10 else "published", False) for row_id in range(1, 12)]

    compare(repository, rows, iter([[rows[-1]]]))
