"""The notification's state machine, and that one module applies it."""

from __future__ import annotations

import pytest

from agent_events.notification.lifecycle import TRANSITIONS, Status
from tests.unit.test_no_other_writer_of_status import ROOT, writes_of

LEGAL = {
    "claim": ({"pending", "failed", "sending"}, "sending"),
    "release": ({"sending"}, "pending"),
    "mark_sent": ({"sending"}, "sent"),
    "fail": ({"sending"}, "failed"),
    "bury": ({"sending"}, "dead"),
    "skip": ({"sending"}, "skipped"),
    "requeue": ({"dead", "skipped"}, "pending"),
}


def test_transitions_are_these_and_no_others() -> None:
    assert {each.name: (set(each.sources), each.target.value) for each in TRANSITIONS} == LEGAL


def test_sent_is_the_end() -> None:
    assert not any(Status.SENT in transition.sources for transition in TRANSITIONS)


@pytest.mark.parametrize("path", sorted((ROOT / "agent_events/notification").rglob("*.py")), ids=lambda path: path.stem)
def test_only_records_writes_the_status_of_a_notification(path: object) -> None:
    source = (ROOT / str(path)).read_text(encoding="utf-8")
    if str(path).endswith("notification/records.py"):
        assert writes_of(source), "the detector does not even find the one writer"
    else:
        assert writes_of(source) == []
