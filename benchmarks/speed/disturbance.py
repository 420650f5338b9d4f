"""What relay, consumer and pruning at full speed cost those who write meanwhile.

Writers run transactions, a business row and an event each, at moments fixed beforehand: for a while alone, then while
the three work on backlogs of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.arithmetic import percentile
from benchmarks.installation import Installation, installed
from benchmarks.journals import Transaction, has_lines, read_journal
from benchmarks.processes import Process
from benchmarks.speed.groups import Group
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import Line, Result, Target
from benchmarks.speed.stage import Load, Stage
from benchmarks.tables import TABLE

_P99: Final = Target(2.0, "most")
_WORKERS: Final = {"relay, consumer and pruning": 0, "the same at nice 19": 19}
"""The second leaves the processors to the writers, and so says what the database alone costs them."""
_WRITERS: Final = 4
_RATE: Final = 200.0
_WARM_S: Final = 3.0
_RELAYED_A_SECOND: Final = 20_000
_PRUNED_A_SECOND: Final = 10_000
"""Backlogs are made for so much; where the work is quicker, the phase ends with the first of them."""
_SHORTEST_SHARE: Final = 0.25
"""Of the phase that was asked for: what ends earlier has too few transactions for a p99."""
_START_TIMEOUT_S: Final = 60.0


def measure(plan: Plan) -> Result:
    """Let writers write alone and beside the workers, in turn."""
    result = Result("writers")
    for workers, niceness in _WORKERS.items():
        _compare(result, plan, workers, niceness)
    return result


def _compare(result: Result, plan: Plan, workers: str, niceness: int) -> None:
    alone: list[list[Transaction]] = []
    beside: list[list[Transaction]] = []
    for number in range(plan.repeats):
        # Each with a topic of its own: what the one before left there has the ids of this one's rows.
        with installed("bench", keep=plan.keep) as installation:
            quiet, busy = _round(Stage(installation), plan, number, niceness)
        alone.append(quiet)
        beside.append(busy)
    for name, share, target in (("p50", 0.5, None), ("p99", 0.99, _P99)):
        result.lines.append(
            Line(
                f"transaction of others beside {workers}: {name}",
                "ms",
                [percentile([each.end - each.start for each in run], share) * 1000 for run in beside],
                [percentile([each.end - each.start for each in run], share) * 1000 for run in alone],
                target,
            )
        )
    result.lines.append(
        Line(
            f"statement of theirs that does nothing, beside {workers}: p99",
            "ms",
            [percentile([each.nothing_s for each in run], 0.99) * 1000 for run in beside],
            [percentile([each.nothing_s for each in run], 0.99) * 1000 for run in alone],
        )
    )
    counts = ", ".join(f"{len(quiet):,} and {len(busy):,}" for quiet, busy in zip(alone, beside, strict=True))
    result.notes.append(f"{workers}: transactions alone and beside: {counts}")


def _round(stage: Stage, plan: Plan, number: int, niceness: int) -> tuple[list[Transaction], list[Transaction]]:
    """Return the transactions alone and beside the workers."""
    installation, seconds = stage.installation, plan.seconds
    last_id = _fill(stage, plan)
    journals = [installation.folder / f"steady-{number}-{writer}.tsv" for writer in range(_WRITERS)]
    writers = [
        installation.writers(
            f"writer-{writer}",
            *("steady", "--journal", str(journal), "--name", f"r{number}w{writer}"),
            *("--rate", str(_RATE / _WRITERS), "--bytes", str(plan.payload)),
        )
        for writer, journal in enumerate(journals)
    ]
    installation.wait(lambda: all(map(has_lines, journals)), "the writers write", timeout_s=_START_TIMEOUT_S)
    time.sleep(_WARM_S)
    quiet = (time.monotonic(), time.monotonic() + seconds)
    time.sleep(seconds)
    workers = [_worker(installation, niceness, "consumer", "consume", "agent")]
    with Group(installation.group()) as group:
        installation.wait(lambda: group.is_settled(1), "the consumer has its partitions", timeout_s=_START_TIMEOUT_S)
    workers.append(_worker(installation, niceness, "prune", "outbox_prune", "agent", "--older-than", "7d"))
    installation.wait(lambda: _has_pruned(stage), "the pruning has begun", timeout_s=_START_TIMEOUT_S)
    workers.insert(0, _worker(installation, niceness, "relay", "run_relay", "agent"))
    installation.wait(lambda: _has_consumed(stage), "relay and consumer work", timeout_s=_START_TIMEOUT_S)
    began = time.monotonic()
    while time.monotonic() < began + seconds and _are_busy(stage, workers[-1], last_id):
        installation.look_after()
        time.sleep(0.25)
    busy = (began, time.monotonic())
    if busy[1] - began < seconds * _SHORTEST_SHARE:
        raise RuntimeError(f"the backlog lasted {busy[1] - began:.1f} s: too short to say what it costs others")
    prune = workers.pop()
    prune.dispose()  # it may just be ending by itself
    installation.processes.remove(prune)
    for process in (*writers, *workers):
        process.stop()
        installation.processes.remove(process)
    transactions = [each for journal in journals for each in read_journal(journal)]
    errors = [each.error for each in transactions if each.error]
    if errors:
        raise RuntimeError(f"{len(errors)} transactions of the writers failed, the first: {errors[0]}")
    return _of(transactions, quiet), _of(transactions, busy)


def _worker(installation: Installation, niceness: int, *command: str) -> Process:
    process = installation.manage(*command)
    os.setpriority(os.PRIO_PROCESS, process.pid, niceness)  # its threads come later and have it from the first one
    return process


def _fill(stage: Stage, plan: Plan) -> int:
    """Fill the table with rows to prune and rows to relay; return the last id."""
    stage.empty()
    old = "UTC_TIMESTAMP(6) - INTERVAL 30 DAY"
    times = dict.fromkeys(("created_at", "updated_at", "next_retry_at", "published_at", "consumed_at"), old)
    stage.fill(Load(int(_PRUNED_A_SECOND * plan.seconds), 5_000, plan.payload), status="'consumed'", **times)
    stage.fill(Load(int(_RELAYED_A_SECOND * plan.seconds), 5_000, plan.payload))
    stage.outbox.settle()
    [(last_id,)] = stage.outbox.execute(f"SELECT MAX(id) FROM {TABLE}")
    return int(last_id)


def _has_pruned(stage: Stage) -> bool:
    return not stage.outbox.execute(f"SELECT 1 FROM {TABLE} WHERE id = 1")


def _has_consumed(stage: Stage) -> bool:
    return bool(stage.outbox.execute("SELECT 1 FROM agent_state_snapshot_records LIMIT 1"))


def _are_busy(stage: Stage, prune: Process, last_id: int) -> bool:
    [(status,)] = stage.outbox.execute(f"SELECT status FROM {TABLE} WHERE id = %s", [last_id])
    return bool(status == "pending" and prune.is_alive)


def _of(transactions: Sequence[Transaction], phase: tuple[float, float]) -> list[Transaction]:
    begin, end = phase
    return [each for each in transactions if begin <= each.due < end]
