"""What a table may have otherwise that other software made, writes to, or changes when it starts.

How such a table is adopted: docs/shared-tables.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections
from django.db.migrations import CreateModel
from django.db.migrations.loader import MigrationLoader
from django.db.models import Field, Model
from django.db.models.fields import NOT_PROVIDED

from outbox.checks.inspection import Database
from outbox.fields import UtcNow
from outbox.models import OutboxMessage, service_route
from outbox.storage.status_rows import StatusRows

PAGE: Final = "docs/shared-tables.md"
_WRITTEN_BY_ALL: Final = frozenset(
    {"service_name", "topic", "status", "retry_count", "max_retry", "next_retry_at", "created_at", "updated_at"}
)
"""Columns of the shared layout that have a default here: other software names them in its INSERTs."""


# --- tables that are there before the migration that makes them ---------------------------------------------------


def tables_before_their_migration(database: Database) -> Iterator[CheckMessage]:
    """Look for tables that ``migrate`` would make and that are there: it would stop, half done, at the first."""
    connection = connections[database.alias]
    with connection.cursor() as cursor:
        existing = set(connection.introspection.table_names(cursor))
    for label in sorted(database.unmigrated):
        tables = [model._meta.db_table for model in apps.get_app_config(label).get_models()]
        if existing.isdisjoint(tables):
            continue
        found = _to_be_made(database, label, existing)
        lacking = {model._meta.db_table: sorted(missing) for model in found if (missing := _missing(database, model))}
        if lacking:
            named = "; ".join(f"{table}: {', '.join(columns)}" for table, columns in lacking.items())
            yield Error(
                f"{_names(found)} in {database.where} exist already, and the migrations of {label!r} would make them: "
                f"`migrate` would stop there. They were made by other software, or by a migration that was "
                f"interrupted, and lack columns ({named}).",
                hint=f"Adopt them as {PAGE} says: its SQL first, then `manage.py migrate {label} --fake-initial`. What "
                f"an interrupted migration left behind, and nobody uses, drop.",
                obj=database.where,
                id="outbox.E090",
            )
        elif found:
            yield CheckWarning(
                f"{_names(found)} in {database.where} exist already, and the migrations of {label!r} are to make them: "
                f"without --fake-initial, `migrate` would stop there.",
                hint=f"Run `manage.py migrate {label} --fake-initial` as {PAGE} says.",
                obj=database.where,
                id="outbox.W085",
            )


def _to_be_made(database: Database, label: str, existing: Collection[str]) -> list[type[Model]]:
    """Return the models, as they are in their migrations, whose tables exist before these are applied."""
    loader = MigrationLoader(connections[database.alias], ignore_no_migrations=True)
    found = []
    for key in sorted(
        node for node in loader.graph.nodes if node[0] == label and node not in loader.applied_migrations
    ):
        for operation in loader.graph.nodes[key].operations:
            if isinstance(operation, CreateModel):
                model = loader.project_state(key).apps.get_model(label, operation.name)
                if model._meta.managed and model._meta.db_table in existing:
                    found.append(model)
    return found


def _missing(database: Database, made: type[Model]) -> set[str]:
    """Return the columns that a table lacks: an outbox table is brought to the newest layout before it is adopted."""
    model: type[Model] = made
    try:
        newest = apps.get_model(made._meta.app_label, made.__name__)
    except LookupError:
        newest = made
    if issubclass(newest, OutboxMessage):
        model = newest
    connection = connections[database.alias]
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, made._meta.db_table)
    return {str(each.column) for each in model._meta.local_concrete_fields} - {column.name for column in described}


def _names(models: Collection[type[Model]]) -> str:
    return "tables " + ", ".join(repr(model._meta.db_table) for model in models)


# --- defaults ----------------------------------------------------------------------------------------------------


def missing_defaults(database: Database, model: type[Model]) -> Iterator[CheckMessage]:
    """Look for columns without which an INSERT fails that does not name them (MySQL, MariaDB).

    An ORM that alters tables at its start takes away the defaults that its own models do not state.
    """
    name = model._meta.db_table
    without = {
        str(column): str(kind)
        for column, kind in database.fetch(
            "SELECT column_name, column_type FROM information_schema.columns WHERE table_schema = DATABASE()"
            " AND table_name = %s AND is_nullable = 'NO' AND column_default IS NULL"
            " AND extra NOT LIKE '%%auto_increment%%' AND extra NOT LIKE '%%GENERATED%%'",
            [name],
        )
    }
    ours = {str(each.column): each for each in model._meta.local_concrete_fields}
    lost = {column: each for column, each in ours.items() if column in without and each.db_default is not NOT_PROVIDED}
    of_ours_alone = [column for column, each in lost.items() if each.name not in _WRITTEN_BY_ALL]
    if of_ours_alone:
        yield Error(
            f"columns of table {name!r} in {database.where} have no default: {', '.join(of_ours_alone)}. Other "
            f"software does not know them, and cannot insert.",
            hint=f"Run: {_set_defaults(name, {column: lost[column] for column in of_ours_alone})}.",
            obj=model,
            id="outbox.E091",
        )
    shared = {column: each for column, each in lost.items() if column not in of_ours_alone}
    if shared:
        yield CheckWarning(
            f"columns of table {name!r} in {database.where} have lost their defaults: {', '.join(shared)}. INSERTs "
            f"that do not name them fail; those of the outbox name every column.",
            hint=f"Run: {_set_defaults(name, shared)}. The auto-migration of an ORM takes them away again whenever its "
            f"program starts, unless its model states them. Silence this where each writer names these columns.",
            obj=model,
            id="outbox.W086",
        )
    if unknown := sorted(without.keys() - ours.keys()):
        yield Error(
            f"columns of table {name!r} in {database.where} that the outbox does not know have no default: "
            f"{', '.join(unknown)}. Publishing fails.",
            hint="Give each a default, or let it be NULL: "
            + "; ".join(f"ALTER TABLE {name} MODIFY {column} {without[column]} NULL" for column in unknown)
            + ".",
            obj=model,
            id="outbox.E092",
        )


def _set_defaults(table: str, fields: dict[str, Field[Any, Any]]) -> str:
    """Return the statement that gives columns the defaults of the model; no row is touched."""
    clauses = [f"ALTER COLUMN {column} SET DEFAULT {_literal(each.db_default)}" for column, each in fields.items()]
    return f"ALTER TABLE {table} {', '.join(clauses)}"


def _literal(default: Any) -> str:
    if isinstance(default, UtcNow):
        return "(UTC_TIMESTAMP(6))"
    value = getattr(default, "value", default)
    return f"'{value}'" if isinstance(value, str) else str(int(value))


# --- time zones --------------------------------------------------------------------------------------------------


def writers_ahead(database: Database, model: type[OutboxMessage]) -> Iterator[CheckMessage]:
    """Look for rows that are due in the future and that nobody put off: somebody writes local times."""
    found = StatusRows(service_route(model.service, model)).count_ahead_of_time()
    if found.value:
        yield CheckWarning(
            f"{found} pending rows of table {model._meta.db_table!r} in {database.where} were written with times in "
            f"the future, so they are not due: a writer's session is not in UTC.",
            hint="Have it begin with SET time_zone = '+00:00' (Go's mysql driver: loc=UTC and "
            f"time_zone=%27%2B00%3A00%27 in its DSN), then set the rows right; {PAGE} has the statements.",
            obj=model,
            id="outbox.W087",
        )
