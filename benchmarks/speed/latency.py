"""The time from an event's commit to its being consumed, at a fixed rate and near the most that can be sustained.

The publisher notes when its commit returned; ``consumed_at`` is the database's moment of the statement that marks the
event, so the commit of that transaction is left out. The ceiling is a record's way through Kafka alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.arithmetic import middle, percentile, speed
from benchmarks.database import kafka_servers
from benchmarks.installation import Installation, installed
from benchmarks.processes import Process
from benchmarks.speed.groups import Group
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import Line, Result, Target
from benchmarks.speed.stage import Stage
from benchmarks.tables import TABLE

_UNUSED: Final = "task"
"""A service whose workers do not run: its topic is for Kafka alone."""
_RATE: Final = 500.0
_P50: Final = Target(40.0, "most", of="figure")
_P99: Final = Target(120.0, "most", of="figure")
_P99_LOADED: Final = Target(1_000.0, "most", of="figure")
_LOADED_SHARE: Final = 0.8
_BACKLOG: Final = 5_000
_WARM_S: Final = 3.0
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Committed:
    """One transaction of the paced writer: its events, when it was due and when it was committed."""

    first_id: int
    count: int
    due: float
    at: float

    @classmethod
    def read(cls, line: str) -> Committed:
        """Read a line of its journal."""
        first_id, count, due, at = line.split("\t")
        return cls(int(first_id), int(count), float(due), float(at))


def spent_ms(lines: Sequence[Committed], consumed: Mapping[int, float], *, offset_s: float) -> list[float]:
    """Return each event's time from commit to consumed; ``consumed`` is by a clock that is ``offset_s`` ahead."""
    return [
        (consumed[row_id] - offset_s - line.at) * 1000
        for line in lines
        for row_id in range(line.first_id, line.first_id + line.count)
    ]


def measure(plan: Plan) -> Result:
    """Measure Kafka alone and the outbox in turn; then what is sustained, and 80 % of it."""
    result = Result("latency")
    rate = _RATE / 5 if plan.quick else _RATE
    bare: list[Mapping[str, float]] = []
    free: list[Mapping[str, float]] = []
    loaded: list[Mapping[str, float]] = []
    sustained: list[float] = []
    with installed("bench", keep=plan.keep, services=("agent", _UNUSED)) as installation:
        stage = Stage(installation)
        bare_topic = installation.topic(_UNUSED)
        for _ in range(plan.repeats):
            bare.append(_kafka_alone(installation, bare_topic, rate, plan))
            workers = _start_workers(stage)
            free.append(_paced(stage, rate, plan))
            sustained.append(_sustained(stage, plan))
            loaded.append(_paced(stage, _LOADED_SHARE * sustained[-1], plan))
            _stop(installation, workers)
    at = f"commit to consumed at {rate:.0f} events/s"
    at_most = f"commit to consumed at {_LOADED_SHARE:.0%} of what is sustained"
    result.lines += [
        Line(f"{at}: p50", "ms", _each(free, "p50"), _each(bare, "p50"), _P50),
        Line(f"{at}: p99", "ms", _each(free, "p99"), _each(bare, "p99"), _P99),
        Line("sustained by one relay and one consumer, publishing included", "events/s", sustained),
        Line(f"{at_most}: p50", "ms", _each(loaded, "p50"), _each(bare, "p50")),
        Line(f"{at_most}: p99", "ms", _each(loaded, "p99"), _each(bare, "p99"), _P99_LOADED),
        Line(f"{at_most}: reached", "events/s", _each(loaded, "rate"), [_LOADED_SHARE * each for each in sustained]),
    ]
    late = [of["late_ms"] for of in (*free, *loaded)]
    result.notes.append(f"the publisher was late by {max(late):.0f} ms at its p99 at the most")
    return result


def _kafka_alone(installation: Installation, topic: str, rate: float, plan: Plan) -> Mapping[str, float]:
    process = installation.start(
        "kafka-alone",
        *("-m", "benchmarks.speed.ceilings", "kafka", "--servers", kafka_servers(), "--topic", topic),
        *("--rate", str(rate), "--count", str(int(rate * plan.seconds)), "--bytes", str(plan.payload)),
    )
    process.wait(timeout_s=plan.seconds + _TIMEOUT_S)
    installation.processes.remove(process)
    answer: Mapping[str, float] = process.answer
    return answer


def _start_workers(stage: Stage) -> list[Process]:
    stage.empty()
    installation = stage.installation
    workers = [installation.manage("relay", "run_relay", "agent"), installation.manage("consumer", "consume", "agent")]
    with Group(installation.group()) as group:
        installation.wait(lambda: group.is_settled(1), "the consumer has its partitions", timeout_s=_TIMEOUT_S)
    return workers


def _paced(stage: Stage, rate: float, plan: Plan) -> Mapping[str, float]:
    """Publish ``rate`` events a second; return percentiles of the events after the first seconds."""
    stage.empty()
    journal = stage.installation.folder / f"paced-{time.monotonic_ns()}.tsv"
    each = max(round(rate / 100), 1) if rate > _RATE else 1
    _publish(stage, journal, plan, "paced", "--rate", str(rate), "--each", str(each))
    consumed = {
        int(row_id): float(moment)
        for row_id, moment in stage.outbox.execute(
            f"SELECT id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', consumed_at) / 1000000 FROM {TABLE}"
        )
    }
    offset_s = _clock_offset(stage)
    lines = [Committed.read(line) for line in journal.read_text().splitlines()]
    begin = lines[0].at + min(_WARM_S, plan.seconds / 3)
    lines = [line for line in lines if line.at >= begin]
    spent = spent_ms(lines, consumed, offset_s=offset_s)
    return {
        "p50": percentile(spent, 0.5),
        "p99": percentile(spent, 0.99),
        "late_ms": percentile([(line.at - line.due) * 1000 for line in lines], 0.99),
        "rate": len(spent) / (lines[-1].at - begin),
    }


def _sustained(stage: Stage, plan: Plan) -> float:
    """Publish as fast as relay and consumer keep up; return events consumed a second."""
    stage.empty()
    journal = stage.installation.folder / f"load-{time.monotonic_ns()}.txt"
    _publish(stage, journal, plan, "load", "--backlog", str(_BACKLOG), "--snapshots")
    return speed(middle(stage.outbox.marks("consumed_at")))


def _publish(stage: Stage, journal: Path, plan: Plan, mode: str, *options: str) -> None:
    """Run a writer for a phase and the warm-up before it, and wait until all is consumed."""
    installation = stage.installation
    writer = installation.writers(mode, mode, "--journal", str(journal), "--bytes", str(plan.payload), *options)
    installation.wait(lambda: journal.exists() and journal.stat().st_size, "the writer writes", timeout_s=_TIMEOUT_S)
    until = time.monotonic() + plan.seconds + min(_WARM_S, plan.seconds / 3)
    installation.wait(lambda: time.monotonic() > until, "the phase is over", timeout_s=plan.seconds + _TIMEOUT_S)
    _stop(installation, [writer])
    installation.wait(
        lambda: not stage.outbox.count("status IN ('pending', 'published')"), "all is consumed", timeout_s=_TIMEOUT_S
    )


def _clock_offset(stage: Stage) -> float:
    """Return by how much the database's clock is ahead of ours, by the quickest of some answers."""
    best = (float("inf"), 0.0)
    for _ in range(20):
        asked = time.time()
        [(theirs,)] = stage.outbox.execute(
            "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000"
        )
        answered = time.time()
        best = min(best, (answered - asked, float(theirs) - (asked + answered) / 2))
    return best[1]


def _stop(installation: Installation, processes: Sequence[Process]) -> None:
    for process in processes:
        process.stop()
        installation.processes.remove(process)


def _each(found: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [of[name] for of in found]
