"""What the tests of the services' handlers share: deliveries made by hand, the handlers run on them, the tables after.

A handler runs as its consumer runs it: in one transaction, with a list or event by event as it declared.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import pytest
from django.apps import apps
from django.db import connections, models, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from outbox import Delivery
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import handlers
from outbox.models import OutboxMessage
from tests.waiting import wait_until

T = TypeVar("T")

APPS = ("agent", "memory", "task", "active_scheduler")

_outbox_ids = itertools.count(1)


def empty(alias: str) -> None:
    """Delete what the services' handlers wrote, and what they published."""
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        for label in (*APPS, "notification"):
            for model in apps.get_app_config(label).get_models():
                if label in APPS or issubclass(model, OutboxMessage):
                    cursor.execute(f"DELETE FROM {connections[alias].ops.quote_name(model._meta.db_table)}")


def delivery(
    payload: msgspec.Struct,
    *,
    using: str,
    event_id: str | None = None,
    outbox_id: int | None = None,
    traceparent: str = "",
) -> Delivery[Any]:
    """Return what a consumer would make of a published ``payload``; ids count up when they are not given."""
    contract = contracts.of(payload)
    row_id = next(_outbox_ids) if outbox_id is None else outbox_id
    return Delivery(
        outbox_id=row_id,
        event_id=f"event-{row_id}" if event_id is None else event_id,
        event_type=contract.event_type,
        event_version=contract.version,
        message_key=contract.message_key(payload),
        aggregate_id=contract.aggregate_text(payload),
        payload=payload,
        attempt=1,
        database=using,
        traceparent=traceparent,
    )


def handle(deliveries: Sequence[Delivery[Any]]) -> None:
    """Run the handler of the deliveries' event type on them, in one transaction."""
    handler = handlers.get(deliveries[0].event_type)
    assert handler is not None
    with transaction.atomic(using=deliveries[0].database):
        if handler.batch:
            handler.function(list(deliveries))
        else:
            for each in deliveries:
                handler.function(each)


def handle_payloads(*payloads: msgspec.Struct, using: str) -> list[Delivery[Any]]:
    """Run the handler on new events with these payloads, as one list; return the deliveries."""
    deliveries = [delivery(payload, using=using) for payload in payloads]
    handle(deliveries)
    return deliveries


def one_by_one(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut into lists of one."""
    return ([item] for item in items)


def in_random_lists(items: Sequence[T], rng: random.Random) -> Iterator[Sequence[T]]:
    """Cut into lists of random lengths, in order."""
    start = 0
    while start < len(items):
        length = rng.randint(1, len(items))
        yield items[start : start + length]
        start += length


def assert_lists_are_a_matter_of_speed(
    deliveries: Sequence[Delivery[Any]], rng: random.Random, look: Callable[[], T]
) -> None:
    """Handle the same events one by one and in random lists; what ``look`` sees must be the same. Empties tables."""
    using = deliveries[0].database
    results = []
    for cut in (one_by_one(deliveries), in_random_lists(deliveries, rng), iter([deliveries])):
        empty(using)
        for each in cut:
            handle(each)
        results.append(look())
    assert results[1] == results[0]
    assert results[2] == results[0]


def rows(model: type[models.Model], alias: str, *columns: str, order_by: Iterable[str] = ("pk",)) -> list[Any]:
    """Return columns of all rows; a single column without its tuple."""
    found = model._default_manager.using(alias).order_by(*order_by)
    return list(found.values_list(*columns, flat=len(columns) == 1))


@contextmanager
def counted_statements(alias: str) -> Iterator[CaptureQueriesContext]:
    """Give the statements that are run inside the block."""
    with CaptureQueriesContext(connections[alias]) as statements:
        yield statements


def spoil(model: type[OutboxMessage], alias: str, *, written: str, instead: str) -> None:
    """Change a text in the stored payload of the newest row, as software with a fault would have written it."""
    row = QuerySet(model, using=alias).latest("pk")
    assert written in row.payload
    QuerySet(model, using=alias).filter(pk=row.pk).update(payload=row.payload.replace(written, instead))


# --- two at once -------------------------------------------------------------------------------------------------


def require_concurrent_writers(alias: str) -> None:
    """Skip the test where two transactions cannot write at the same time."""
    if connections[alias].vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")


def in_thread(alias: str, work: Callable[[], T]) -> Future[T]:
    """Do ``work`` on another thread, with a connection of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - for who asks for the result
            future.set_exception(error)
        finally:
            connections[alias].close()

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_until_somebody_waits(alias: str, *, for_table: str) -> None:
    """Wait until a statement on a table waits for a lock."""
    # On another connection, as PostgreSQL shows a transaction the same activity until its end; and not too often, as
    # InnoDB shows nothing new within a tenth of a second.
    connection = connections[alias].copy()
    statement = {
        "mysql": "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        " AND trx_query LIKE %s",
        "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database() AND query LIKE %s",
    }[connection.vendor]

    def somebody_waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(statement, [f"%{for_table}%"])
            return bool(cursor.fetchone()[0])

    try:
        wait_until(somebody_waits, interval=0.15, message=f"waiting for a lock of {for_table}")
    finally:
        connection.close()
