"""How keys and event types are compared: byte for byte, as far as the collations of a table's columns let them be.

MySQL and MariaDB only: there a column without a collation of its own ignores case. SQLite compares bytes, and
PostgreSQL takes texts for equal only where their bytes are, unless a column asks for another collation; no migration
does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections
from django.db.models import Model

from outbox.checks.inspection import Database
from outbox.fields import NO_PAD_COLLATION, NO_PAD_COLLATION_OF_MARIADB, KeyField, key_collation

_NO_PAD: Final = re.compile(r"utf8mb4_0900_bin|\w+_nopad_bin")
_TYPE: Final = r"\w+(?:\([^)]*\))?"


def key_collations(database: Database, model: type[Model]) -> Iterator[CheckMessage]:
    """Look for keys and types that are equal though their bytes are not."""
    name, collations = model._meta.db_table, _collations(database, model)
    careless = {column: each for column, each in collations.items() if not _NO_PAD.fullmatch(each)}
    if not careless:
        return
    listed = ", ".join(f"{column} ({collation})" for column, collation in careless.items())
    if not collations.get("message_key", "_bin").endswith("_bin"):
        yield Error(
            f"message_key of table {name!r} in {database.where} has the collation {collations['message_key']}: keys "
            f"that differ in case or accents only would be one key.",
            hint=f"{alter_keys(database, name, careless)}.",
            obj=model,
            id="outbox.E087",
        )
        return
    connection: Any = connections[database.alias]
    wanted = NO_PAD_COLLATION_OF_MARIADB if connection.mysql_is_mariadb else NO_PAD_COLLATION
    upgrade = "" if key_collation(connection) == wanted else f"Upgrade the server, which has no {wanted}. "
    yield CheckWarning(
        f"columns of table {name!r} in {database.where} take texts for equal that differ in blanks at their end, or "
        f"in case: {listed}. The outbox tells them apart by reading more rows; other software does not.",
        hint=f"{upgrade}While nothing writes to the table (MySQL rewrites it), run: "
        f"{alter_keys(database, name, careless, collation=wanted)}.",
        obj=model,
        id="outbox.W084",
    )


def alter_keys(database: Database, table: str, columns: Collection[str], *, collation: str = "") -> str:
    """Return the statement that gives ``columns`` the collation of keys and leaves all else of them as it is.

    ``MODIFY`` takes away what it does not name, so each column is stated as the server states it.
    """
    wanted = collation or key_collation(connections[database.alias])
    made = str(database.fetch(f"SHOW CREATE TABLE {table}")[0][1])
    clauses = [
        f"MODIFY {column} {_definition_of(made, column, f'CHARACTER SET utf8mb4 COLLATE {wanted}')}"
        for column in columns
    ]
    return f"ALTER TABLE {table} {', '.join(clauses)}"


def key_columns(model: type[Model]) -> list[str]:
    """Return the columns of ``model`` that are compared byte for byte."""
    return [each.column for each in model._meta.local_concrete_fields if isinstance(each, KeyField) and each.column]


def _collations(database: Database, model: type[Model]) -> dict[str, str]:
    """Return the collation of each key column of the table; a column of bytes has none, and is not among them."""
    found = dict(
        database.fetch(
            "SELECT column_name, collation_name FROM information_schema.columns"
            " WHERE table_schema = DATABASE() AND table_name = %s AND collation_name IS NOT NULL",
            [model._meta.db_table],
        )
    )
    return {column: str(found[column]) for column in key_columns(model) if column in found}


def _definition_of(made: str, column: str, compared: str) -> str:
    """Return what stands behind a column's name in ``SHOW CREATE TABLE``, its character set and collation replaced."""
    pattern = rf"^\s*[`\"]?{column}[`\"]? ({_TYPE})(?: CHARACTER SET \w+)?(?: COLLATE \w+)?(.*?),?$"
    found = re.search(pattern, made, re.MULTILINE)
    if found is None:
        raise LookupError(f"SHOW CREATE TABLE states no column {column!r}")
    return f"{found[1]} {compared}{found[2]}"
