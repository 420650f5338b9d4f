"""Whether every character of a payload can be stored: what a session speaks, what a table's columns hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from django.core.checks import CheckMessage, Error
from django.db.models import Model

from outbox.checks.collations import alter_keys, key_columns
from outbox.checks.databases import vendor_of
from outbox.checks.inspection import Database

_WHOLE_UNICODE: Final = "utf8mb4"


def session_encoding(database: Database) -> Iterator[CheckMessage]:
    """Look at what texts are turned into on their way: what that cannot hold is refused, or becomes ``?``."""
    vendor = vendor_of(database.alias)
    if vendor == "mysql":
        names = database.fetch("SELECT @@character_set_client, @@character_set_connection")[0]
        if wrong := sorted({str(name) for name in names} - {_WHOLE_UNICODE}):
            yield Error(
                f"the session speaks {', '.join(wrong)}: characters of a payload that it lacks, such as emoji, would "
                f"be stored as '?'.",
                hint=f"Set OPTIONS['charset'] of this database to '{_WHOLE_UNICODE}', which is also Django's default, "
                f"and let no init_command change it.",
                obj=database.where,
                id="outbox.E089",
            )
    elif vendor == "postgresql":
        encoding = str(database.fetch("SHOW server_encoding")[0][0])
        if encoding != "UTF8":
            yield Error(
                f"the database is encoded in {encoding}: payloads with other characters, such as emoji, cannot be "
                f"stored.",
                hint="Make a database WITH ENCODING 'UTF8' TEMPLATE template0, and move the tables there by pg_dump.",
                obj=database.where,
                id="outbox.E089",
            )


def column_encodings(database: Database, model: type[Model]) -> Iterator[CheckMessage]:
    """Look for columns that cannot hold every character."""
    name = model._meta.db_table
    columns: dict[str, list[str]] = {}
    for column, character_set in database.fetch(
        "SELECT column_name, character_set_name FROM information_schema.columns WHERE table_schema = DATABASE()"
        " AND table_name = %s AND character_set_name <> %s ORDER BY ordinal_position",
        [name, _WHOLE_UNICODE],
    ):
        columns.setdefault(str(character_set), []).append(str(column))
    if columns:
        kept = "; ".join(f"{', '.join(each)} in {character_set}" for character_set, each in sorted(columns.items()))
        remedy = [f"ALTER TABLE {name} CONVERT TO CHARACTER SET {_WHOLE_UNICODE}"]
        if keys := key_columns(model):
            # In a statement of its own: converting gives the keys the collation of the others.
            remedy.append(alter_keys(database, name, keys))
        yield Error(
            f"table {name!r} in {database.where} keeps {kept}: characters of a payload that these lack, such as emoji, "
            f"are refused, or stored as '?' without a word where the server is not strict.",
            hint=f"Stop the workers of the service, run: {'; '.join(remedy)}.",
            obj=model,
            id="outbox.E088",
        )
