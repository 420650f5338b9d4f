"""Pages that show rows with times that are none: zero dates, infinity, years that no driver has a datetime for."""

from __future__ import annotations

import pytest
from django.db import connections
from django.test import Client

from tests.integration.admin_rows import DATABASES, DEAD, MESSAGES, add_dead

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db(databases=DATABASES)

COLUMNS = ("next_retry_at", "published_at", "consumed_at", "created_at", "updated_at", "dead_at")
NO_TIMES = {
    "mysql": ("0000-00-00 00:00:00", "2026-00-00 00:00:00"),
    "postgresql": ("infinity", "-infinity", "0044-03-15 00:00:00+00 BC"),
    "sqlite": ("0000-00-00 00:00:00", "0000-01-01 00:00:00", "", "infinity"),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_lists_and_pages_show_what_they_can(root: Client, outbox_alias: str, column: str) -> None:
    connection = connections[outbox_alias]
    rows = []
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SET @usual = @@SESSION.sql_mode, SESSION sql_mode = ''")
        for number, value in enumerate(NO_TIMES[connection.vendor]):
            rows.append(add_dead(key=f"odd-{number}", last_error="out of paper"))
            table = rows[-1]._meta.db_table
            cursor.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s", [value, rows[-1].pk])
        if connection.vendor == "mysql":
            cursor.execute("SET SESSION sql_mode = @usual")
    rows.append(add_dead(key="sound"))

    messages = root.get(MESSAGES).content.decode()
    root.get(DEAD)
    for row in rows:
        assert row.message_key in messages
        assert row.message_key in root.get(f"{MESSAGES}{row.pk}/change/").content.decode()
