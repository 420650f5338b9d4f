"""Statements and bytes a batch, counted: no noise changes them."""

from __future__ import annotations

from typing import Final

from benchmarks.installation import installed
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import Line, Result, Target

_EVENTS: Final = 20_000
_STATEMENTS: Final = {"relay": Target(3.0, "most", of="figure"), "consumer": Target(5.0, "most", of="figure")}
_BYTES: Final = {"relay": Target(1.3, "most", of="figure"), "consumer": Target(2.5, "most", of="figure")}
"""The relay reads each payload once; the consumer reads it, and its handler here writes most of it again."""
_TIMEOUT_S: Final = 600.0


def measure(plan: Plan) -> Result:
    """Run the process that counts, and read its answer."""
    result = Result("cost")
    events = min(plan.events, _EVENTS)
    with installed("bench", keep=plan.keep) as installation:
        process = installation.start(
            "counting", "-m", "benchmarks.speed.counting", "--events", str(events), "--bytes", str(plan.payload)
        )
        process.wait(timeout_s=_TIMEOUT_S)
        answer = process.answer
    for role, of in answer.items():
        if of["events"] != events:
            raise RuntimeError(f"the {role} has done {of['events']:,} of {events:,} events")
        name = f"{role}, a batch of {events / of['batches']:.0f}"
        result.lines += [
            Line(f"{name}: statements", "a batch", [of["statements"]], target=_STATEMENTS[role], counted=True),
            Line(
                f"{name}: round trips, upkeep and transaction control included",
                "a batch",
                [of["round_trips"]],
                counted=True,
            ),
            Line(
                f"{name}: bytes to and from the database",
                "× payload",
                [of["bytes_to_payload"]],
                target=_BYTES[role],
                counted=True,
            ),
        ]
        result.notes.append(
            f"{role}: {of['batches']} batches, {of['upkeep']} statements of upkeep, {of['idle_claims']} claims that"
            " found nothing"
        )
    return result
