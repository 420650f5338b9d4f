"""The servers and tables themselves: asked when a command names databases, as ``check --database`` and ``migrate`` do.

While migrations of an app are not applied, its tables are not looked at: ``migrate`` runs these checks too, and must
not be stopped by what it is about to put right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model

from outbox.checks.collations import key_collations
from outbox.checks.databases import services_by_alias, vendor_of
from outbox.checks.declarations import outbox_models, valid_routes
from outbox.checks.encodings import column_encodings, session_encoding
from outbox.checks.inspection import Database, Table
from outbox.checks.options import configured
from outbox.checks.shared_tables import PAGE, missing_defaults, tables_before_their_migration, writers_ahead
from outbox.conf import OutboxSettings
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import ServiceRoute
from outbox.models import OutboxMessage
from outbox.storage.dialects import SUPPORTED_VENDORS
from outbox.storage.status_rows import Count, StatusRows

_PACKET_OVERHEAD_BYTES: Final = 64 * 1024
_MINIMUM: Final = {"mysql": (8, 0, 13), "mariadb": (10, 6), "postgresql": (14,), "sqlite": (3, 31)}
_NEEDED_FOR: Final = {
    "mysql": "defaults that are expressions",
    "mariadb": "SELECT … SKIP LOCKED",
    "postgresql": "what its makers still mend",
    "sqlite": "generated columns",
}


def check_schema(aliases: Collection[str]) -> list[CheckMessage]:
    """Check those of ``aliases`` that outbox tables live on."""
    options = configured()
    if options is None:
        return []
    messages: list[CheckMessage] = []
    for alias in services_by_alias():
        if alias in aliases and alias in set(connections) and vendor_of(alias) in SUPPORTED_VENDORS:
            database = Database(alias)
            try:
                messages += _check(database, options)
            except Exception as error:  # noqa: BLE001 - an outage, missing rights: whatever it is, a check never raises
                messages.append(
                    Error(
                        f"the database cannot be checked: {type(error).__name__}: {error}",
                        hint="Is the server there, is its version supported by Django, and may the user of this "
                        "connection read the tables and information_schema?",
                        obj=database.where,
                        id="outbox.E081",
                    )
                )
    return messages


def check_foreign_rows(aliases: Collection[str]) -> list[CheckMessage]:
    """Look for unfinished rows in the tables of ``aliases`` that another service owns now."""
    messages: list[CheckMessage] = []
    if configured() is None:
        return messages
    for service, route in valid_routes().items():
        foreign = sorted(contract.event_type for contract in contracts if contract.service != service)
        if route.database not in aliases or not foreign:
            continue
        found = _unfinished(route, foreign)
        if found.value:
            messages.append(
                CheckWarning(
                    f"{found} unfinished rows in {route.table!r} are of event types that other services own: nobody "
                    f"relays them.",
                    hint="Add 'outbox.contrib.shared_table' to INSTALLED_APPS and run "
                    f"`manage.py rehome_outbox {service}`.",
                    obj=outbox_models()[service][0],
                    id="outbox.W083",
                )
            )
    return messages


def _unfinished(route: ServiceRoute, event_types: Collection[str]) -> Count:
    try:
        return StatusRows(route, tuple(event_types)).count_unfinished_foreign()
    except Exception:  # noqa: BLE001 - check_schema says what is wrong with this database
        return Count(0)


def _check(database: Database, options: OutboxSettings) -> Iterator[CheckMessage]:
    yield from _version(database)
    yield from _packet(database, options)
    yield from session_encoding(database)
    _look(database)
    if database.unmigrated:
        yield CheckWarning(
            f"migrations are not applied of {', '.join(sorted(database.unmigrated))}; the tables of these apps were "
            f"not checked.",
            hint=f"Run `manage.py migrate --database {database.alias}`.",
            obj=database.where,
            id="outbox.W081",
        )
        yield from tables_before_their_migration(database)
    for model in _models_on(database.alias):
        if model._meta.app_label not in database.unmigrated:
            yield from _model(database, model)


# --- the server --------------------------------------------------------------------------------------------------


def _version(database: Database) -> Iterator[CheckMessage]:
    connection: Any = connections[database.alias]
    kind = "mariadb" if getattr(connection, "mysql_is_mariadb", False) else connection.vendor
    version = tuple(connection.get_database_version())
    if version < _MINIMUM[kind]:
        yield Error(
            f"{kind} {_dotted(version)} is too old; {_dotted(_MINIMUM[kind])} is needed for {_NEEDED_FOR[kind]}.",
            hint="Upgrade the server.",
            obj=database.where,
            id="outbox.E082",
        )


def _packet(database: Database, options: OutboxSettings) -> Iterator[CheckMessage]:
    if vendor_of(database.alias) != "mysql":
        return
    packet = int(database.fetch("SELECT @@max_allowed_packet")[0][0])
    if packet < options.max_payload_bytes + _PACKET_OVERHEAD_BYTES:
        yield Error(
            f"max_allowed_packet is {packet:,} bytes, and payloads may have {options.max_payload_bytes:,} "
            f"(MAX_PAYLOAD_BYTES): publishing a large one would end the connection.",
            hint="Raise max_allowed_packet to twice MAX_PAYLOAD_BYTES (quotes are sent escaped), or lower "
            "MAX_PAYLOAD_BYTES.",
            obj=database.where,
            id="outbox.E083",
        )


def _dotted(version: Collection[int]) -> str:
    return ".".join(map(str, version))


# --- the tables --------------------------------------------------------------------------------------------------


def _models_on(alias: str) -> list[type[Model]]:
    """Return the models whose tables should be on ``alias``: outbox tables, and what the workers need beside them."""
    here = [models[0] for service, models in outbox_models().items() if _is_on(service, alias)]
    return [*here, *apps.get_app_config("outbox").get_models()]


def _is_on(service: str, alias: str) -> bool:
    route = valid_routes().get(service)
    return route is not None and route.database == alias


def _look(database: Database) -> None:
    """Read the columns and indexes of the tables, and which apps are not migrated."""
    connection = connections[database.alias]
    models = _models_on(database.alias)
    with connection.cursor() as cursor:
        introspection = connection.introspection
        existing = set(introspection.table_names(cursor))
        for name in existing & {model._meta.db_table for model in models}:
            database.tables[name] = Table(
                columns=frozenset(column.name for column in introspection.get_table_description(cursor, name)),
                indexes=tuple(
                    tuple(each["columns"])
                    for each in introspection.get_constraints(cursor, name).values()
                    if each["index"]
                ),
            )
    database.unmigrated = _unmigrated(database, models)


def _unmigrated(database: Database, models: Collection[type[Model]]) -> frozenset[str]:
    """Return the labels of the apps that ``migrate`` has yet to work on."""
    loader = MigrationLoader(connections[database.alias], ignore_no_migrations=True)
    pending = {label for label, name in loader.graph.nodes if (label, name) not in loader.applied_migrations}
    missing = {model._meta.app_label for model in models if model._meta.db_table not in database.tables}
    labels = {model._meta.app_label for model in models}
    return frozenset(labels & (pending | (missing & loader.unmigrated_apps)))


def _model(database: Database, model: type[Model]) -> Iterator[CheckMessage]:
    name = model._meta.db_table
    table = database.tables.get(name)
    if table is None:
        yield Error(
            f"table {name!r} is missing in {database.where}, although its migrations are recorded as applied.",
            hint="Was it dropped, or is OUTBOX['SERVICES'][…]['TABLE'] newer than the migration? Rename the table, or "
            "make it as `manage.py sqlmigrate` shows.",
            obj=model,
            id="outbox.E084",
        )
        return
    columns_of = {each.name: each.column or "" for each in model._meta.local_concrete_fields}
    if missing := sorted(set(columns_of.values()) - table.columns):
        yield Error(
            f"table {name!r} in {database.where} lacks the columns {', '.join(missing)}.",
            hint="Add them as `manage.py sqlmigrate` shows them. How a table that other software made is adopted is in "
            f"{PAGE}.",
            obj=model,
            id="outbox.E085",
        )
        return
    for index in model._meta.indexes:
        columns = tuple(columns_of[each] for each in index.fields)
        if not any(found[: len(columns)] == columns for found in table.indexes):
            yield CheckWarning(
                f"table {name!r} in {database.where} has no index on ({', '.join(columns)}): claims and ordering would "
                f"read the whole table.",
                hint=f"Create it: CREATE INDEX {index.name} ON {name} ({', '.join(columns)}).",
                obj=model,
                id="outbox.W082",
            )
    if issubclass(model, OutboxMessage):
        yield from writers_ahead(database, model)
    if vendor_of(database.alias) == "mysql":
        yield from column_encodings(database, model)
        if issubclass(model, OutboxMessage):
            yield from _mysql_table(database, model)


def _mysql_table(database: Database, model: type[Model]) -> Iterator[CheckMessage]:
    """Look at what a table that other software made may have otherwise."""
    name = model._meta.db_table
    engine = database.fetch(
        "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s", [name]
    )
    if engine and str(engine[0][0]).lower() != "innodb":
        yield Error(
            f"table {name!r} in {database.where} is kept by {engine[0][0]}, which has no transactions.",
            hint=f"ALTER TABLE {name} ENGINE = InnoDB.",
            obj=model,
            id="outbox.E086",
        )
    yield from key_collations(database, model)
    yield from missing_defaults(database, model)
