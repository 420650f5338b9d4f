"""What a chaos run expects of an event, by what the event told its handler."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.acceptance.promises import Row
from tests.chaos.expectations import MAX_INTERRUPTIONS, Expected, expectation, told
from tests.chaos.handlers import FOR_EVER, faulty_events
from tests.chaos.kinds import KINDS
from tests.chaos.ledger import SqlRow
from tests.chaos.schedule import TimedFault

MAX_RETRY = 5


def expected(key: str = "k", *, written: SqlRow | None = None, **fields: Any) -> Expected:
    row = Row(1, "e", "probe.step", key, "pending", 0, None)
    payload = json.dumps({"payload": {"n": 1, **fields}})
    return expectation(row, told(payload), written=written, max_retry=MAX_RETRY)


def test_sound_event_is_consumed_without_an_attempt() -> None:
    assert expected().is_sound
    assert not expected().may_die
    assert expected(verdict="poison", every=2).is_sound


@pytest.mark.parametrize(
    ("fields", "status", "attempts"),
    [
        ({"fail_times": 2}, "consumed", 2),
        ({"verdict": "retry"}, "consumed", 1),
        ({"verdict": "discard"}, "dead", 1),
        ({"verdict": "poison"}, "dead", MAX_RETRY),
        ({"fault": "swallow-error", "times": 2}, "consumed", 2),
        ({"fault": "swallow-error", "times": FOR_EVER}, "dead", MAX_RETRY),
        ({"fault": "hang-socket", "times": 1}, "consumed", 1),
        ({"fault": "kill-exit", "times": 2}, "consumed", 0),
        ({"fault": "kill-match", "times": 2}, "consumed", 0),
        ({"fault": "hook"}, "consumed", 0),
        ({"fault": "idle", "sleep_ms": 2000}, "consumed", 0),
    ],
)
def test_each_failure_of_its_own_costs_exactly_one_attempt(fields: dict[str, Any], status: str, attempts: int) -> None:
    found = expected(**fields)
    assert (found.statuses, found.least, found.most) == ({status}, attempts, attempts)
    assert found.interruptions == 0


@pytest.mark.parametrize("fault", ["kill-signal", "kill-match"])
def test_event_that_always_ends_its_process_dies_without_an_attempt(fault: str) -> None:
    found = expected(fault=fault, times=FOR_EVER)
    assert found.must_die
    assert (found.least, found.most, found.interruptions) == (0, 0, MAX_INTERRUPTIONS)


def test_statement_that_is_too_large_costs_attempts_or_interruptions() -> None:
    once, always = expected(fault="large-statement", times=1), expected(fault="large-statement", times=FOR_EVER)
    assert (once.statuses, once.least, once.most, once.interruptions) == ({"consumed"}, 0, 1, 0)
    assert (always.statuses, always.most, always.interruptions) == ({"dead"}, MAX_RETRY, MAX_INTERRUPTIONS)


def test_event_whose_row_is_locked_may_be_consumed_or_die_of_the_lock() -> None:
    found = expected(fault="row-lock", target=7)
    assert found.may_die
    assert not found.must_die
    assert "1205" in found.reason


def test_row_of_plain_sql_becomes_what_was_written_down() -> None:
    written = SqlRow("k", "dead", "PayloadError", is_certain=True)
    assert expected(written=written) == Expected(frozenset({"dead"}), reason="PayloadError")
    assert expected("oversize.1-0-0").must_die


@pytest.mark.parametrize("payload", ["no JSON", "[1, 2]", '{"payload": {"key": 7}}', "{}"])
def test_what_is_no_event_of_ours_tells_nothing(payload: str) -> None:
    assert told(payload) is None


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.lane in {"handlers", "killers"}])
def test_event_of_each_fault_is_published_amid_sound_ones_and_comes_to_an_end(name: str) -> None:
    chance = random.Random(name)
    for _ in range(50):
        fault = TimedFault(1.0, name, KINDS[name].lane, 0.0, chance.random())
        events = faulty_events(fault)
        assert events == faulty_events(fault)
        bad = [fields for _, fields in events if "fault" in fields]
        assert [fields["fault"] for fields in bad] == [name]
        assert len({fields["key"] for _, fields in events}) == 4
        for _, fields in events:
            found = expected(**fields)
            assert found.is_sound or fields in bad
            assert len(found.statuses) == 1 or name == "row-lock"
