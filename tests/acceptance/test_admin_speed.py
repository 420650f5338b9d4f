"""Every page of the admin stays under a second with a million rows in a table, on MariaDB and MySQL."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client

from outbox.models import RejectedRecord
from tests.integration.admin_rows import DATABASES as ALL_DATABASES
from tests.integration.admin_rows import DEAD, MESSAGES, REJECTED, ROUTES, SERVICES, model_of
from tests.services import require

DATABASES = tuple(alias for alias in ("default", "mariadb", "mysql") if alias in ALL_DATABASES)
pytestmark = [pytest.mark.django_db(databases=DATABASES), pytest.mark.alone]

ROWS = 1_000_000
LIMIT_S = 1.0

_FILL = """
INSERT INTO agent_outbox_messages (event_type, service_name, topic, message_key, payload, status, next_retry_at,
    created_at, updated_at, last_error, error_class, dead_at, resolved_at, resolved_by)
WITH RECURSIVE thousand(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM thousand WHERE i < 999)
SELECT IF(n % 999 = 0, 'chat.token.usage.adjust.requested', 'agent.state.snapshot.persist'), 'agent', 'topic',
    IF(n % 7 < 2, 'hot', CONCAT('conv-', n % 5003)),
    CONCAT('{"event_id":"', n, '","event_type":"t","event_version":"v1","aggregate_id":"a","payload":{"n":1}}'),
    status, IF(n % 10007 = 0, NULL, at), at, at,
    IF(status = 'dead', 'ValueError: no such user', NULL), IF(status = 'dead', 'ValueError', ''),
    IF(status = 'dead', at, NULL), IF(status = 'dead' AND n > 100, at, NULL), IF(status = 'dead', 'anna', '')
FROM (
    SELECT n, UTC_TIMESTAMP(6) - INTERVAL (1000000 - n) SECOND AS at,
        CASE WHEN n % 20 < 10 THEN 'consumed' WHEN n % 20 < 15 THEN 'pending' WHEN n % 20 < 18 THEN 'published'
            ELSE 'dead' END AS status
    FROM (SELECT a.i * 1000 + b.i AS n FROM thousand a CROSS JOIN thousand b) numbers
) numbered
"""
"""Half of the rows done, a quarter pending, a tenth dead; all dead but the oldest handful given up: the worst case for
the list of open ones."""

_FILL_REJECTED = """
INSERT INTO outbox_rejected_records (service, topic, `partition`, `offset`, digest, headers, reason, resolved_at)
WITH RECURSIVE thousand(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM thousand WHERE i < 999)
SELECT 'agent', 'topic', 0, a.i * 1000 + b.i, 'd', '[]', 'no outbox message', IF(a.i > 0, UTC_TIMESTAMP(6), NULL)
FROM thousand a CROSS JOIN (SELECT i FROM thousand WHERE i < 100) b
"""


@pytest.fixture(params=["mariadb", "mysql"])
def alias(request: pytest.FixtureRequest) -> str:
    """Give the name of the database that all services are on."""
    require(request.param)
    return str(request.param)


@pytest.fixture
def client(settings: Any, alias: str) -> Iterator[Client]:
    """Sign in where the agent's table has a million rows.

    ANALYZE and TRUNCATE commit, so the rows are not rolled back but taken away here.
    """
    settings.OUTBOX = {"SERVICES": {service: {"DATABASE": alias} for service in SERVICES}}
    connection = connections[alias]
    tables = [model_of("agent")._meta.db_table, RejectedRecord._meta.db_table]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_FILL)
            assert cursor.rowcount == ROWS
            cursor.execute(_FILL_REJECTED)
            for table in tables:
                cursor.execute(f"ANALYZE TABLE {table}")
                cursor.fetchall()
        client = Client()
        client.force_login(User.objects.create_superuser("root"))
        yield client
    finally:
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"TRUNCATE TABLE {table}")


def addresses() -> list[str]:
    """Return every kind of page, with every kind of question."""
    lists = [
        "",
        *(f"status={status}" for status in ("pending", "published", "consumed", "dead")),
        "event_type=chat.token.usage.adjust.requested",
        "event_type=no.such.type",
        "event_type=chat.token.usage.adjust.requested&status=dead",
        "event_type=no.such.type&status=consumed",
        "key=hot",
        "key=hot&status=pending",
        "key=hot&event_type=no.such.type",
        "key=conv-17",
        "key=no-such-key",
    ]
    dead = [
        "",
        "state=all",
        "state=given-up",
        "error_class=ValueError",
        "error_class=None&state=all",
        "event_type=none",
    ]
    rejected = ["", "state=all", "service=agent", "service=agent&state=all", "service=task"]
    return [
        "/admin/",
        ROUTES,
        *(f"{MESSAGES}?{question}" for question in lists),
        *(f"{DEAD}?{question}" for question in dead),
        *(f"{REJECTED}?{question}" for question in rejected),
    ]


def test_every_page_stays_under_a_second(client: Client, alias: str) -> None:
    rows = model_of("agent").objects.using(alias)
    some = {status: rows.filter(status=status).order_by("id")[5000] for status in ("pending", "dead")}
    client.get("/admin/")  # templates are compiled once a process
    seconds: dict[str, float] = {}
    for page in [*addresses(), *(f"{MESSAGES}{row.pk}/change/" for row in some.values())]:
        content = _timed(client, page, seconds)
        for rel in ("next", "prev"):
            link = re.search(f'rel="{rel}" href="([^"]*)"', content)
            if link:
                content = _timed(client, page.partition("?")[0] + unescape(link[1]), seconds, f"{page} ({rel})")
    _replay_some(client, alias, seconds)
    for page, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{taken * 1000:5.0f} ms  {page}")
    assert {page: taken for page, taken in seconds.items() if taken >= LIMIT_S} == {}


def _timed(client: Client, page: str, seconds: dict[str, float], name: str = "") -> str:
    """Fetch a page twice, note the faster time and return what it says."""
    times = []
    content = ""
    for _ in range(2):
        started = time.perf_counter()
        response = client.get(page)
        times.append(time.perf_counter() - started)
        assert response.status_code == 200, page
        content = response.content.decode()
    seconds[name or page] = min(times)
    return content


def _replay_some(client: Client, alias: str, seconds: dict[str, float]) -> None:
    """Note how long it takes to replay fifty events of a key that has a quarter of all rows."""
    rows = model_of("agent").objects.using(alias)
    ids = list(rows.filter(status="dead", message_key="hot").order_by("id").values_list("id", flat=True)[:50])
    started = time.perf_counter()
    client.post(DEAD, {"action": "replay", "selected": [f"agent:{row_id}" for row_id in ids]})
    seconds["replay of selected"] = time.perf_counter() - started
    assert len(ids) == rows.filter(pk__in=ids, status="pending").count() == 50
