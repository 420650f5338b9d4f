"""The consumer against the database alone: a list handler, a handler of one event, and a batch with one bad event.

Its records come from Kafka, where the real relay has put them before; the ceiling gets none, it knows the ids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from benchmarks.installation import installed
from benchmarks.speed.plan import Plan, keys_of
from benchmarks.speed.report import Line, Result, Target
from benchmarks.speed.stage import Load, Stage

_LIST: Final = Target(0.6, "least")
_EACH: Final = Target(2_000.0, "least", of="figure")
_BAD: Final = Target(2.0, "most")
_BATCH_TIMEOUT_S: Final = 600.0


def measure(plan: Plan) -> Result:
    """Consume the same backlog by the ceiling and by the consumer in turn."""
    result = Result("consumer")
    with installed("bench", keep=plan.keep) as installation:
        stage = Stage(installation)
        load = Load(plan.events, plan.keys, plan.payload)
        fewer = max(plan.events // 4, 1)
        each = Load(fewer, keys_of(fewer), plan.payload)
        beside = replace(load, consumed=plan.consumed)
        lists, raw_lists, eachs, raw_eachs, besides, raw_besides = [], [], [], [], [], []
        for _ in range(plan.repeats):
            raw_lists.append(stage.consume("ceiling", load))
            lists.append(stage.consume("ours", load))
            raw_besides.append(stage.consume("ceiling", beside))
            besides.append(stage.consume("ours", beside))
            raw_eachs.append(stage.consume("ceiling", each, each=True))
            eachs.append(stage.consume("ours", each, each=True))
        result.lines.append(Line("list handler, one upsert a batch", "events/s", lists, raw_lists, _LIST))
        name = f"list handler, beside {plan.consumed:,} consumed rows"
        result.lines.append(Line(name, "events/s", besides, raw_besides))
        result.lines.append(Line("handler of one event, one upsert each", "events/s", eachs, raw_eachs, _EACH))
        _bad_batches(stage, plan, result)
    return result


def _bad_batches(stage: Stage, plan: Plan, result: Result) -> None:
    """Handle good batches and batches with one bad event in turn, without a broker."""
    stage.empty()
    rounds = 2 if plan.quick else 5 * plan.repeats
    process = stage.installation.start(
        "batches", "-m", "benchmarks.speed.batches", "--rounds", str(rounds), "--bytes", str(plan.payload)
    )
    process.wait(timeout_s=_BATCH_TIMEOUT_S)
    for handler, of in process.answer.items():
        own = "" if handler == "nothing" else " (its own work included)"
        name = f"batch of 500, one bad, handler that does {handler}{own}"
        target = _BAD if handler == "nothing" else None
        result.lines.append(Line(name, "ms", of["bad_ms"], of["good_ms"], target))
        result.lines.append(
            Line(f"{name}: round trips", "a batch", of["bad_round_trips"], of["good_round_trips"], counted=True)
        )
