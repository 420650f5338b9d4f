"""Rows of a list handler go into few statements, none of them too large for a server, and all of them arrive."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from agent_events.memory.models import MemoryJob
from outbox.bulk import MAX_CHARACTERS, MAX_ROWS, BulkInsert, ignoring_known
from tests import records

INSERT = BulkInsert(
    table=MemoryJob._meta.db_table,
    columns=("idempotency_key", "user_id", "conversation_id", "source_role", "source_text"),
    clock_columns=("occurred_at",),
    on_conflict=ignoring_known("idempotency_key"),
)
HALF = "x" * (MAX_CHARACTERS // 2)


@pytest.fixture(autouse=True)
def _records(alias: str) -> Iterator[None]:
    yield
    records.empty(alias)


def statements_for(texts: list[str], *, using: str) -> int:
    """Insert a row for each text; return how many statements that took."""
    rows = [(f"key-{number}", 7, "talk", "user", text) for number, text in enumerate(texts)]
    with transaction.atomic(using=using), CaptureQueriesContext(connections[using]) as queries:
        INSERT.run(rows, using=using)
    return sum(query["sql"].startswith("INSERT") for query in queries)


@pytest.mark.parametrize(
    ("texts", "statements"),
    [
        ([], 0),
        (["a"] * (2 * MAX_ROWS + 1), 3),
        ([HALF] * 3, 3),  # the other columns count as well
        (["a", HALF * 3, "b", "c"], 3),
    ],
    ids=["none", "many", "large", "too large"],
)
def test_rows_are_cut_into_statements_by_number_and_size(alias: str, texts: list[str], statements: int) -> None:
    assert statements_for(texts, using=alias) == statements
    assert records.rows(MemoryJob, alias, "source_text") == texts


def test_clock_is_the_databases_and_a_known_key_is_left_alone(alias: str) -> None:
    statements_for(["first"], using=alias)
    statements_for(["second", "third"], using=alias)
    jobs = MemoryJob.objects.using(alias).order_by("id")
    assert [job.source_text for job in jobs] == ["first", "third"]
    assert all(abs((datetime.now(UTC) - job.occurred_at).total_seconds()) < 60 for job in jobs)
