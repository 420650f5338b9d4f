"""What pruning a large table costs those who publish meanwhile.

Writers run transactions, a business row and an event each, at moments fixed beforehand: for a while alone, while the
real command prunes, and for a while after it. Their time is that of the transaction; the time since the moment at which
it was due is shown beside it, as a slow one also delays those behind it.

The p99 is held against that of the time before twice: over the whole phases, and as the median of windows of ten
seconds. The first sees what is rare and long. The second is not fooled by a bad moment in the time before, which would
make the first look good.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.arithmetic import percentile, usual_percentile
from benchmarks.installation import Installation, installed
from benchmarks.journals import Transaction, has_lines, read_journal
from benchmarks.processes import Process
from benchmarks.report import Outcome, figures_table, mib
from benchmarks.tables import OutboxTable

P99_RATIO: Final = 2.0
SLOWEST_RATE: Final = 5_000.0
"""Rows a second. Ten million take 33 minutes at it: a nightly run has room for that."""
_DEAD: Final = 100
_WINDOW_S: Final = 10.0
_PRUNE_TIMEOUT_S: Final = 7_200.0
_SAMPLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What the table holds before anybody prunes or writes."""

    old: int
    young: int
    dead: int


def measure(
    *,
    rows: int,
    payload_bytes: int,
    writers: int,
    rate: float,
    batch_size: int | None,
    before_s: float,
    after_s: float,
    keep: bool,
) -> Outcome:
    """Fill, write, prune while writing, and look at what is left."""
    outcome = Outcome("prune")
    with installed("limits", keep=keep) as installation:
        outbox = OutboxTable(installation)
        expected = _fill(outbox, rows, payload_bytes, outcome)
        journals = [installation.folder / f"writer-{number}.tsv" for number in range(writers)]
        processes = [
            installation.writers(
                f"writer-{number}",
                *("steady", "--journal", str(journal), "--name", f"w{number}"),
                *("--rate", str(rate / writers), "--bytes", str(payload_bytes)),
            )
            for number, journal in enumerate(journals)
        ]
        installation.wait(lambda: all(map(has_lines, journals)), "the writers write", timeout_s=60)
        _rest(installation, min(5.0, before_s / 2))  # their first transactions load what the others find loaded
        bounds = [time.monotonic()]
        _rest(installation, before_s)
        bounds.append(time.monotonic())
        _prune(installation, outbox, expected, batch_size, outcome)
        bounds.append(time.monotonic())
        _rest(installation, after_s)
        bounds.append(time.monotonic())
        for process in processes:
            process.stop()
        transactions = [each for journal in journals for each in read_journal(journal)]
        _report_latency(outcome, transactions, bounds)
        committed = sum(not each.error for each in transactions)
        _check_rows(outcome, outbox, expected, committed)
        _check_errors(outcome, transactions, processes)
    return outcome


def _fill(outbox: OutboxTable, rows: int, payload_bytes: int, outcome: Outcome) -> Expected:
    """Fill the table with old rows, consumed but for a few dead ones, and young consumed ones behind them."""
    began = time.monotonic()
    template = outbox.template(body_bytes=payload_bytes)
    outbox.truncate()
    indexes = outbox.without_indexes()
    expected = Expected(old=rows, young=max(rows // 100, 1), dead=_DEAD)
    keys = max(1_000, rows // 50)
    for status, count, first, length in (
        ("consumed", expected.old, "30 DAY", "20 DAY"),
        ("dead", expected.dead, "9 DAY", "1 DAY"),
        ("consumed", expected.young, "1 HOUR", "50 MINUTE"),
    ):
        amount, unit = length.split()
        seconds = int(amount) * {"DAY": 86_400, "MINUTE": 60}[unit]
        moment = f"UTC_TIMESTAMP(6) - INTERVAL {first} + INTERVAL {seconds * 1_000_000}.0 * seq / {count} MICROSECOND"
        times = ("created_at", "updated_at", "next_retry_at", "published_at")
        more = dict.fromkeys([*times, "consumed_at" if status == "consumed" else "dead_at"], moment)
        outbox.fill(template, rows=count, keys=keys, more=more | {"status": f"'{status}'"})
    filled_s = time.monotonic() - began
    for statement in indexes:
        outbox.execute(statement)
    outbox.settle()
    outcome.figures["size_mib"] = outbox.size_mib()
    outcome.sections.append(
        f"{expected.old:,} old and {expected.young:,} young consumed rows, {expected.dead} dead ones, {keys:,} keys:"
        f" {outcome.figures['size_mib']:,} MiB, filled in {filled_s:.0f} s, with indexes after"
        f" {time.monotonic() - began:.0f} s; buffer pool {outbox.buffer_pool_mib()} MiB"
    )
    print(outcome.sections[-1], flush=True)
    return expected


def _prune(
    installation: Installation, outbox: OutboxTable, expected: Expected, batch_size: int | None, outcome: Outcome
) -> None:
    """Run the command; look at its memory and at how far the server is behind with removing deleted rows."""
    deleted_before, began = outbox.status("Handler_delete"), time.monotonic()
    more = [] if batch_size is None else ["--batch-size", str(batch_size)]
    command = installation.manage("prune", "outbox_prune", "agent", "--older-than", "7d", *more)
    behind = [0]
    progress = [(began, 0)]
    while command.is_alive:
        installation.look_after()
        if time.monotonic() - began > _PRUNE_TIMEOUT_S:
            raise RuntimeError(f"pruning has not ended within {_PRUNE_TIMEOUT_S:g} s")
        behind.append(outbox.status("Innodb_history_list_length"))
        progress.append((time.monotonic(), outbox.status("Handler_delete") - deleted_before))
        time.sleep(_SAMPLE_S)
    ended = command.wait(timeout_s=1)
    rate = expected.old / ended.seconds
    print(command.text.strip(), flush=True)
    outcome.figures |= {
        "prune_seconds": ended.seconds,
        "rows_per_second": rate,
        "peak_rss_kib": ended.peak_kib,
        "history_list_max": max(behind),
        "progress": [(round(at - began, 2), count) for at, count in progress],
    }
    outcome.sections.append(
        f"pruned in {ended.seconds:.1f} s: {rate:,.0f} rows/s; peak RSS of the command {mib(ended.peak_kib)} MiB;"
        f" undo history of the server {max(behind):,} at the most"
    )
    outcome.judge(f"rows pruned a second, at least {SLOWEST_RATE:,.0f}", f"{rate:,.0f}", held=rate >= SLOWEST_RATE)


def _report_latency(outcome: Outcome, transactions: Sequence[Transaction], bounds: Sequence[float]) -> None:
    """Report the phases between ``bounds``: before, during, after; a transaction belongs to where it was due."""
    rows = []
    for name, first, last in zip(("before", "during", "after"), bounds, bounds[1:], strict=False):
        of_phase = [each for each in transactions if first <= each.due < last]
        if not of_phase:
            continue
        spent = [(each.end - each.start) * 1000 for each in of_phase]
        since_due = [(each.end - each.due) * 1000 for each in of_phase]
        cuts = [percentile(spent, share) for share in (0.5, 0.99, 0.999)]
        timed = [(each.due, (each.end - each.start) * 1000) for each in of_phase]
        usual = usual_percentile(timed, 0.99, window=_WINDOW_S)
        figures = [*cuts, max(spent), usual, percentile(since_due, 0.99)]
        rows.append((name, f"{len(spent):,}", f"{len(spent) / (last - first):.0f}", *(f"{ms:.1f}" for ms in figures)))
        outcome.figures[f"latency_{name}_ms"] = dict(
            zip(("p50", "p99", "p999", "max", "p99_usual", "p99_since_due"), figures, strict=True)
        )
    header = (
        "writers",
        "transactions",
        "a second",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "usual p99 ms",
        "p99 since due ms",
    )
    outcome.sections.append(figures_table(header, rows))
    before, during = outcome.figures["latency_before_ms"], outcome.figures["latency_during_ms"]
    for what, name in (("p99", "p99"), (f"usual p99 of {_WINDOW_S:.0f} s", "p99_usual")):
        ratio = during[name] / before[name]
        outcome.figures[f"{name}_ratio"] = ratio
        outcome.judge(
            f"{what} of the writers while pruning to that before, at most {P99_RATIO:g}",
            f"{ratio:.2f}",
            held=ratio <= P99_RATIO,
        )


def _check_rows(outcome: Outcome, outbox: OutboxTable, expected: Expected, committed: int) -> None:
    left = {
        "old": outbox.count("status = 'consumed' AND consumed_at < UTC_TIMESTAMP() - INTERVAL 7 DAY"),
        "young": outbox.count("status = 'consumed' AND consumed_at > UTC_TIMESTAMP() - INTERVAL 7 DAY"),
        "dead": outbox.count("status = 'dead'"),
        "pending": outbox.count("status = 'pending'"),
    }
    wanted = {"old": 0, "young": expected.young, "dead": expected.dead, "pending": committed}
    outcome.figures["rows_left"] = left
    outcome.judge(
        "rows left: no old consumed one, and every other one",
        ", ".join(f"{name} {count:,} of {wanted[name]:,}" for name, count in left.items()),
        held=left == wanted,
    )


def _check_errors(outcome: Outcome, transactions: Sequence[Transaction], processes: Sequence[Process]) -> None:
    errors = [each.error for each in transactions if each.error]
    logged = sum(process.errors for process in processes)
    outcome.figures["writer_errors"] = errors
    figure = f"{len(errors) + logged} of {len(transactions):,}" + (f", the first: {errors[0]}" if errors else "")
    outcome.judge("errors of the writers, none", figure, held=not errors and not logged)


def _rest(installation: Installation, seconds: float) -> None:
    """Let time pass while nothing may fail."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        installation.look_after()
        time.sleep(min(left, 0.5))
