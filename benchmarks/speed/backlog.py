"""Whether a relay is as quick and as small with millions of pending rows as with thousands, and the database as quick.

The relay's runs are those of ``benchmarks.limits.backlog``, which also says how it goes within the large one.
"""

from __future__ import annotations

from typing import Final

from benchmarks.installation import installed
from benchmarks.limits.backlog import MEMORY_RATIO, SPEED_RATIO, Run, relay_once
from benchmarks.speed.plan import Plan, keys_of
from benchmarks.speed.report import Line, Result, Target
from benchmarks.speed.stage import Load, Stage

_SMALL: Final = 10_000
_LARGE: Final = 2_000_000
_SPEED: Final = Target(SPEED_RATIO, "least")
_MEMORY: Final = Target(MEMORY_RATIO, "most")
_KIB: Final = 1024


def measure(plan: Plan) -> Result:
    """Relay small backlogs, a large one and small ones again, each by the ceiling and by a relay."""
    result = Result("backlog")
    runs: dict[int, list[Run]] = {_SMALL: [], _LARGE: []}
    ceilings: dict[int, list[float]] = {_SMALL: [], _LARGE: []}
    with installed("bench", keep=plan.keep) as installation:
        stage = Stage(installation)
        template = stage.outbox.template(body_bytes=plan.payload)
        for rows in (*[_SMALL] * plan.repeats, _LARGE, *[_SMALL] * plan.repeats):
            ceilings[rows].append(stage.relay("ceiling", Load(rows, keys_of(rows), plan.payload)))
            runs[rows].append(relay_once(installation, stage.outbox, template, rows))
        pool_mib = stage.outbox.buffer_pool_mib()
    name = f"{_LARGE:,} pending to {_SMALL:,}"
    large, small = [run.speed for run in runs[_LARGE]], [run.speed for run in runs[_SMALL]]
    sizes = {rows: [run.peak_kib / _KIB for run in of_size] for rows, of_size in runs.items()}
    result.lines += [
        Line(f"{name}: one relay", "events/s", large, small, _SPEED),
        Line(f"{name}: the ceiling alone", "events/s", ceilings[_LARGE], ceilings[_SMALL]),
        Line(f"{_LARGE:,} pending: one relay to the ceiling", "events/s", large, ceilings[_LARGE]),
        Line(f"{name}: memory of the relay at its peak", "MiB", sizes[_LARGE], sizes[_SMALL], _MEMORY),
    ]
    [run] = runs[_LARGE]
    result.notes.append(
        f"slowest and quickest tenth of the {_LARGE:,}: {min(run.tenths):,.0f} and {max(run.tenths):,.0f} events/s;"
        f" buffer pool {pool_mib} MiB"
    )
    return result
