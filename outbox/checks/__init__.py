"""System checks: what is wrong is said by ``manage.py check``, with a stable id and a hint, before a process starts.

``check --tag outbox`` runs these alone; ``check --database default`` also asks the database, and with ``--deploy`` it
looks for rows that nobody relays. A check never raises: wrong configuration gives messages. All ids are listed in
docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from django.core.checks import CheckMessage, Tags, register

from outbox.checks.broker import check_broker
from outbox.checks.databases import check_databases
from outbox.checks.declarations import check_declarations
from outbox.checks.options import check_options
from outbox.checks.schema import check_foreign_rows, check_schema

TAG: Final = "outbox"


@register(TAG)
def check_configuration(**_: Any) -> list[CheckMessage]:
    """Check ``settings.OUTBOX``, its broker, what the apps declare and the databases' settings; connect to nothing."""
    return [*check_options(), *check_broker(), *check_declarations(), *check_databases()]


@register(TAG, Tags.database)
def check_tables(*, databases: Collection[str] | None = None, **_: Any) -> Sequence[CheckMessage]:
    """Check servers and tables, of the ``databases`` that the command was asked for."""
    return check_schema(databases or ())


@register(TAG, Tags.database, deploy=True)
def check_leftovers(*, databases: Collection[str] | None = None, **_: Any) -> Sequence[CheckMessage]:
    """Check for rows that lie in a table from the time when services shared it."""
    return check_foreign_rows(databases or ())
