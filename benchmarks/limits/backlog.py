"""Whether the size of a backlog changes the relay's speed or memory: small ones before and after a big one.

The relay is a process of its own with ``--once``; nobody looks at the database while it works. Its speed comes from the
moments of its marks, which the database wrote into the rows: from the first mark to the last, so that starting up and
ending cost nothing. No consumer runs, so that it is the relay's speed and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from benchmarks.arithmetic import head, speed, tenths
from benchmarks.installation import Installation, installed
from benchmarks.report import Outcome, figures_table, mib
from benchmarks.tables import OutboxTable, Template

SPEED_RATIO: Final = 0.9
MEMORY_RATIO: Final = 1.1
_HEADS: Final = (10_000, 50_000)
_RELAY_TIMEOUT_S: Final = 3_600.0
_SECONDS_APART: Final = 0.0001
"""How far apart the rows of a backlog were published."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one relay did with one backlog."""

    rows: int
    speed: float
    heads: dict[int, float]
    tenths: list[float]
    peak_kib: int
    seconds: float
    warnings: list[str]


def measure(*, rows: int, small_rows: int, repeats: int, payload_bytes: int, keep: bool) -> Outcome:
    """Relay small backlogs, a big one, and small ones again."""
    with installed("limits", keep=keep) as installation:
        outbox = OutboxTable(installation)
        template = outbox.template(body_bytes=payload_bytes)
        runs: dict[int, list[Run]] = {small_rows: [], rows: []}
        for size in [*[small_rows] * repeats, rows, *[small_rows] * repeats]:
            run = relay_once(installation, outbox, template, size)
            runs[size].append(run)
            print(f"{size:,} rows: {run.speed:,.0f} events/s, peak RSS {mib(run.peak_kib)} MiB", flush=True)
        pool = outbox.buffer_pool_mib()
        size_mib = outbox.size_mib()
    outcome = Outcome("backlog")
    outcome.figures = {"runs": [asdict(run) for of_size in runs.values() for run in of_size], "buffer_pool_mib": pool}
    _report(outcome, small=runs[small_rows], big=runs[rows][-1])
    warnings = [warning for of_size in runs.values() for run in of_size for warning in run.warnings]
    outcome.sections += ["\n".join(["warnings of the relays:", *warnings[:10]])] if warnings else []
    outcome.sections.append(f"buffer pool {pool} MiB; the table of {small_rows:,} rows ended with {size_mib} MiB")
    return outcome


def relay_once(installation: Installation, outbox: OutboxTable, template: Template, rows: int) -> Run:
    """Fill the table with ``rows`` that are due, and have a relay send them all and end."""
    outbox.truncate()
    ago_us = int(rows * _SECONDS_APART * 1e6) + 60_000_000
    moment = (
        f"UTC_TIMESTAMP(6) - INTERVAL {ago_us} MICROSECOND + INTERVAL seq * {int(_SECONDS_APART * 1e6)} MICROSECOND"
    )
    more = dict.fromkeys(("created_at", "updated_at", "next_retry_at"), moment)
    outbox.fill(template, rows=rows, keys=max(1_000, rows // 20), more=more)
    outbox.settle()
    relay = installation.manage("relay", "run_relay", "agent", "--once")
    ended = relay.wait(timeout_s=_RELAY_TIMEOUT_S)
    steps = outbox.marks()
    marked = sum(count for _, count in steps)
    if marked != rows or relay.errors:
        raise RuntimeError(f"{marked:,} of {rows:,} rows were relayed, {relay.errors} errors:\n{relay.text[-4000:]}")
    heads = {events: speed(head(steps, events)) for events in _HEADS if events <= rows}
    return Run(rows, speed(steps), heads, tenths(steps), ended.peak_kib, steps[-1][0] - steps[0][0], relay.warnings)


def _report(outcome: Outcome, *, small: Sequence[Run], big: Run) -> None:
    usual = median(run.speed for run in small)
    usual_kib = median(run.peak_kib for run in small)
    slowest, quickest = min(run.speed for run in small), max(run.speed for run in small)
    outcome.sections.append(
        figures_table(
            ("backlog", "runs", "events/s", "slowest", "quickest", "seconds", "peak RSS MiB"),
            [
                (
                    f"{small[0].rows:,}",
                    str(len(small)),
                    f"{usual:,.0f}",
                    f"{slowest:,.0f}",
                    f"{quickest:,.0f}",
                    f"{median(run.seconds for run in small):.1f}",
                    mib(usual_kib),
                ),
                (
                    f"{big.rows:,}",
                    "1",
                    f"{big.speed:,.0f}",
                    f"{min(big.tenths):,.0f}",
                    f"{max(big.tenths):,.0f}",
                    f"{big.seconds:.1f}",
                    mib(big.peak_kib),
                ),
            ],
        )
    )
    parts = [(f"first {events:,}", each) for events, each in big.heads.items()]
    parts += [(f"{number}0 %", each) for number, each in enumerate(big.tenths, start=1)]
    outcome.sections.append(
        figures_table(
            ("of the big one", "events/s", "to the small ones"),
            [(name, f"{each:,.0f}", f"{each / usual:.2f}") for name, each in parts],
        )
    )
    ratio, memory = big.speed / usual, big.peak_kib / usual_kib
    outcome.figures |= {"speed_ratio": ratio, "memory_ratio": memory}
    outcome.judge(
        f"speed with {big.rows:,} pending rows to that with {small[0].rows:,}, at least {SPEED_RATIO}",
        f"{ratio:.2f}",
        held=ratio >= SPEED_RATIO,
    )
    outcome.judge(f"peak RSS likewise, at most {MEMORY_RATIO}", f"{memory:.2f}", held=memory <= MEMORY_RATIO)
