"""The relay against the database alone, with small and large backlogs, and what it costs when nothing is to be done."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.installation import SERVICES, installed
from benchmarks.speed.plan import Plan, keys_of
from benchmarks.speed.report import Line, Result, Target
from benchmarks.speed.stage import Load, Stage
from benchmarks.tables import OutboxTable

_ONE: Final = Target(0.75, "least")
_TWO: Final = Target(0.9, "least")
_SMALL: Final = 10_000
_WAITING: Final = 100_000
_IDLE_CPU: Final = Target(1.0, "most", of="figure")
_IDLE_STATEMENTS: Final = Target(20.0, "most", of="figure")
_COMING_UP_S: Final = 12.0
"""Until the first looks for what is stuck are over, and pauses have grown to their longest."""


def measure(plan: Plan) -> Result:
    """Relay backlogs by the ceiling, by one and by two relays in turn; then look at idle ones."""
    result = Result("relay")
    with installed("bench", keep=plan.keep) as installation:
        stage = Stage(installation)
        for name, load in _loads(plan).items():
            ceilings, pairs, ones, twos = [], [], [], []
            for _ in range(plan.repeats):
                ceilings.append(stage.relay("ceiling", load))
                ones.append(stage.relay("ours", load))
                if not plan.quick:
                    pairs.append(stage.relay("ceiling", load, processes=2))
                    twos.append(stage.relay("ours", load, processes=2))
            result.lines.append(Line(f"{name}: one relay", "events/s", ones, ceilings, _ONE))
            if twos:
                result.lines.append(Line(f"{name}: two relays", "events/s", twos, ceilings, _TWO))
                result.lines.append(Line(f"{name}: two relays to two of the ceiling", "events/s", twos, pairs))
    with installed("bench", keep=plan.keep, services=SERVICES) as installation:
        idle = [_idle(Stage(installation), plan) for _ in range(plan.repeats)]
    share, statements = zip(*idle, strict=True)
    result.lines.append(Line("idle relay of five services", "% of a core", share, target=_IDLE_CPU))
    result.lines.append(
        Line("idle relay of five services", "statements/s", statements, target=_IDLE_STATEMENTS, counted=True)
    )
    return result


def _loads(plan: Plan) -> dict[str, Load]:
    load = Load(plan.events, plan.keys, plan.payload)
    if plan.quick:
        return {f"{load.events:,} pending": load}
    small = min(plan.events, _SMALL)
    return {
        f"{small:,} pending": Load(small, keys_of(small), plan.payload),
        f"{load.events:,} pending": load,
        f"{load.events:,} pending, {_WAITING:,} due later": Load(load.events, load.keys, load.payload, _WAITING),
    }


def _idle(stage: Stage, plan: Plan) -> tuple[float, float]:
    """Return what an idle relay takes of a core, in per cent, and its statements a second.

    The server counts what everybody does there, transaction control too; what it counts without a relay is taken off.
    """
    stage.empty()
    seconds = plan.seconds / 2 if plan.quick else plan.seconds
    others = _questions(stage.outbox, seconds)
    relay = stage.installation.manage("relay", "run_relay")
    time.sleep(_COMING_UP_S / 3 if plan.quick else _COMING_UP_S)
    cpu_s, began = relay.cpu_s, time.monotonic()
    statements = _questions(stage.outbox, seconds)
    share = 100 * (relay.cpu_s - cpu_s) / (time.monotonic() - began)
    relay.stop()
    stage.installation.processes.remove(relay)
    return share, max(statements - others, 0.0)


def _questions(outbox: OutboxTable, seconds: float) -> float:
    before, began = outbox.status("Questions"), time.monotonic()
    time.sleep(seconds)
    return (outbox.status("Questions") - before) / (time.monotonic() - began)
