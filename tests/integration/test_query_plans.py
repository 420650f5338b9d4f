"""The database finds rows by the indexes that were made for it: the plan of every query, on a table with all kinds.

A statement that lost its index is as right as before and takes seconds at a million rows; no other test would notice.
The plans are those of MariaDB and MySQL; docs/indexes.md says what each index is for.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from benchmarks import plans
from outbox.storage.repository import OutboxRepository
from tests import factories

pytestmark = pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)

ROWS: Final = 20_000
ALMOST_ALL_DONE, BACKLOG = 0.01, 0.9
"""The share of unfinished rows: what the optimizer takes for cheap differs between these two."""

PRIMARY, DUE, KEY = "PRIMARY", "agent_ob_due", "agent_ob_key"

EXPECTED: Final[dict[str, list[list[set[str]]]]] = {
    "claim from the oldest": [[{PRIMARY}, {DUE}]],
    "claim, half of the shards": [[{PRIMARY}, {DUE}]],
    "claim, going on": [[{PRIMARY}, {DUE}]],
    "mark published": [[{PRIMARY}], [{PRIMARY}]],
    "redeliver": [[{DUE}], [{PRIMARY}], [{PRIMARY}]],
    "published rows as a queue": [[{PRIMARY}, {DUE}]],
    "lock a batch": [[{PRIMARY}]],
    # What is dead and parks its key: by the status when few are dead, else by the key.
    "predecessors of a batch": [[{PRIMARY}], [{KEY}, {DUE, KEY}]],
    "mark consumed": [[{PRIMARY}]],
    "put back": [[{PRIMARY}]],
    "replay": [[{PRIMARY}]],
    "release a key": [[{KEY}, {KEY}]],
    "count what a key holds": [[{KEY}]],
    "prune a window": [[{PRIMARY}], [{PRIMARY}], [{PRIMARY}]],
    "count of a status, capped": [[{DUE}]],
    "age of what is due longest": [[{DUE}]],
}
"""By query, for each of its statements, which index may serve each reading of the table."""

CLAIMS: Final = ("claim from the oldest", "claim, half of the shards", "claim, going on")

Plan = list[dict[str, Any]]


@pytest.fixture(params=[ALMOST_ALL_DONE, BACKLOG], ids=["almost-all-done", "backlog"])
def found(request: pytest.FixtureRequest, alias: str) -> dict[str, list[Plan]]:
    """Return by query the plans of its statements, the readings of the outbox table only."""
    repository = factories.repository()
    plans.fill(repository.route, ROWS, unfinished=request.param)
    return {
        name: [of_table(repository, statement.plan) for statement in plans.explain(repository, query).statements]
        for name, query in plans.queries(repository).items()
    }


def of_table(repository: OutboxRepository, plan: Plan) -> Plan:
    return [reading for reading in plan if reading["table"] in {repository.route.table, "m"}]


def test_every_query_uses_its_index(found: dict[str, list[Plan]]) -> None:
    for name, expected in EXPECTED.items():
        keys = [[reading["key"] for reading in plan] for plan in found[name]]
        assert [len(plan) for plan in keys] == [len(plan) for plan in expected], (name, keys)
        for plan, allowed in zip(keys, expected, strict=True):
            assert all(key in among for key, among in zip(plan, allowed, strict=True)), (name, keys)
    assert found.keys() == EXPECTED.keys()
    readings = [reading for statements in found.values() for plan in statements for reading in plan]
    assert {reading["type"] for reading in readings} <= {"const", "eq_ref", "ref", "range"}, readings


def test_claim_reads_the_index_alone_from_where_it_begins(found: dict[str, list[Plan]]) -> None:
    """By status alone it would walk over all that was sent before, and the longer a backlog the slower."""
    for name in CLAIMS:
        [[_payloads, due]] = found[name]
        assert due["type"] == "range", (name, due)
        assert "Using index" in due["Extra"], (name, due)
        assert "filesort" not in due["Extra"], (name, due)
        assert "temporary" not in due["Extra"], (name, due)


def test_claim_goes_on_inside_of_one_moment(found: dict[str, list[Plan]]) -> None:
    """As many rows as one statement put back or replayed have one due time: their ids are part of the range."""
    [[_, from_the_oldest]], [[_, going_on]] = found["claim from the oldest"], found["claim, going on"]
    assert int(going_on["key_len"]) > int(from_the_oldest["key_len"])


def test_no_query_is_answered_by_a_skip_scan(found: dict[str, list[Plan]]) -> None:
    """MySQL's for grouping takes a key's smallest id before it has applied the conditions: a wrong answer."""
    extras = {reading["Extra"] or "" for statements in found.values() for plan in statements for reading in plan}
    assert not [extra for extra in extras if "for group-by" in extra or "for skip scan" in extra]
