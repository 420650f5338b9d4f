"""Publishing a snapshot: losing one must never fail a chat."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import DatabaseError, transaction

from agent_events.agent.events import publish_agent_state_snapshot
from outbox import publish
from tests.conftest import Configure
from tests.publishing import business_is_there, outbox_rows, remember_business, rolled_back, snapshot


def runtime_snapshot(phase: Any = "plan") -> Any:
    return SimpleNamespace(
        runtime_state=SimpleNamespace(common_state=SimpleNamespace(phase=phase)), _private=object(), turns=[1, 2]
    )


def publish_runtime(snapshot: Any) -> str | None:
    return publish_agent_state_snapshot(snapshot, conversation_id="c-1", user_id=7)


@pytest.mark.parametrize(
    ("runtime", "phase"),
    [
        (runtime_snapshot(), "plan"),
        (runtime_snapshot(phase=None), ""),
        ({"runtime_state": {"common_state": {"phase": "act"}}}, "act"),
        ({"runtime_state": {"common_state": None}}, ""),
        ({"runtime_state": []}, ""),
        ({}, ""),
        (SimpleNamespace(turns=3), ""),
    ],
)
def test_snapshot_is_published_with_its_phase(alias: str, runtime: Any, phase: str) -> None:
    event_id = publish_runtime(runtime)

    [row] = outbox_rows(alias)
    stored = json.loads(row.payload)
    assert stored["event_id"] == event_id
    assert (stored["payload"]["phase"], stored["payload"]["user_id"]) == (phase, 7)
    assert "_private" not in stored["payload"]["snapshot_json"]
    json.loads(stored["payload"]["snapshot_json"])


def test_no_snapshot_publishes_nothing(alias: str) -> None:
    assert publish_runtime(None) is None
    assert outbox_rows(alias) == []


def test_snapshot_is_not_published_while_sending_is_switched_off(alias: str, configure: Configure) -> None:
    configure(ENABLED=False)

    assert publish_runtime(runtime_snapshot()) is None
    assert outbox_rows(alias) == []
    publish(snapshot())
    assert len(outbox_rows(alias)) == 1, "what must not be lost is written all the same"


@pytest.mark.parametrize(
    "runtime",
    [object(), {"x": {1, object()}}, runtime_snapshot(phase="x" * 33), {"deep": None}],
    ids=["opaque", "opaque inside", "long phase", "endless"],
)
def test_snapshot_that_cannot_be_published_is_logged_and_the_request_goes_on(
    alias: str, caplog: pytest.LogCaptureFixture, runtime: Any
) -> None:
    if isinstance(runtime, dict) and "deep" in runtime:
        runtime["deep"] = runtime
    with caplog.at_level(logging.ERROR), transaction.atomic(using=alias):
        assert publish_runtime(runtime) is None
        remember_business(alias)

    assert business_is_there(alias)
    assert outbox_rows(alias) == []
    assert "was not published" in caplog.text


def test_failed_statement_of_a_snapshot_does_not_poison_the_callers_transaction(
    alias: str, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(services={"agent": {"DATABASE": alias, "TABLE": "no_such_table"}})
    with pytest.raises(DatabaseError):
        publish(snapshot())

    with caplog.at_level(logging.ERROR), transaction.atomic(using=alias):
        assert publish_runtime(runtime_snapshot()) is None
        remember_business(alias)

    assert business_is_there(alias)
    assert "was not published" in caplog.text


def test_snapshot_goes_with_the_transaction_it_was_published_in(alias: str) -> None:
    with rolled_back(alias):
        assert publish_runtime(runtime_snapshot())
    assert outbox_rows(alias) == []

    with transaction.atomic(using=alias):
        assert publish_runtime(runtime_snapshot())
    assert len(outbox_rows(alias)) == 1
