"""``outbox.contrib.shared_table``: where it is not installed, no statement looks for rows of other services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from outbox.lifecycle import Status
from outbox.registry.catalog import forget_routes, repository_of, route_registry
from tests.factories import get, row
from tests.repositories import UNLIMITED

APP = "outbox.contrib.shared_table"
FOREIGN = "memory.extract.requested"


@pytest.fixture
def without_app() -> Iterator[None]:
    with override_settings(INSTALLED_APPS=[name for name in settings.INSTALLED_APPS if name != APP]):
        forget_routes()
        yield
    forget_routes()


def statements_of_a_way(alias: str) -> str:
    """Return what relay and consumer ask of the table on the way of one event."""
    repository = repository_of("agent")
    with CaptureQueriesContext(connections[alias]) as captured:
        claim = repository.claim(shards=None, limit=10, max_length=UNLIMITED)
        repository.claim(shards=[1, 2], limit=10, max_length=UNLIMITED, after=claim.last)
        repository.redeliver(shards=None, published_before=repository.now(), limit=10)
        repository.published(shards=None, limit=10)
        repository.predecessors(repository.lock([each.id for each in claim.rows], max_length=UNLIMITED))
    return "\n".join(each["sql"] for each in captured)


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
@pytest.mark.usefixtures("without_app")
def test_without_the_app_no_statement_names_types_of_others(alias: str) -> None:
    row(alias)

    assert FOREIGN not in statements_of_a_way(alias)
    assert route_registry().foreign_types("agent") == ()
    with pytest.raises(CommandError, match="Unknown command"):
        call_command("rehome_outbox")


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_with_the_app_rows_of_others_are_left_out(alias: str) -> None:
    own, foreign = row(alias), row(alias, event_type=FOREIGN)

    assert FOREIGN in statements_of_a_way(alias)
    claim = repository_of("agent").claim(shards=None, limit=10, max_length=UNLIMITED)
    assert [each.id for each in claim.rows] == [own]
    assert get(alias, foreign).status == Status.PENDING
