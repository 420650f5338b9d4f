"""Whether relay, consumer and cleaner stay as large as they are under full load.

Writers publish as fast as relay and consumer keep up, and the cleaner is run again and again with a short retention, so
that rows come and go all the time. Each process is looked at every second by what the kernel says of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.installation import Installation, installed
from benchmarks.limits.arithmetic import GROWTH_FLOOR_KIB, GROWTH_SHARE, Flatness, flatness
from benchmarks.processes import Process, Sample
from benchmarks.report import Outcome, figures_table, mib
from benchmarks.tables import OutboxTable

_SAMPLE_S: Final = 1.0
_DRAIN_TIMEOUT_S: Final = 120.0
_CLEANER_TIMEOUT_S: Final = 300.0
_COUNTS_FLOOR: Final = 2.0
"""By so many file descriptors or threads may the median grow: a client that changes connections has both for a time."""


@dataclass(slots=True)
class Watch:
    """What was seen of the two workers, and of each run of the cleaner."""

    seconds: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    cleaner_events: list[float] = field(default_factory=list)
    cleaner_kib: list[float] = field(default_factory=list)
    cleaners: list[Process] = field(default_factory=list)
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a soak is run."""

    minutes: float
    backlog: int
    writers: int
    payload_bytes: int
    retention_s: int
    pause_s: float
    """Between two runs of the cleaner, from the end of one to the start of the next."""


def measure(plan: Plan, *, keep: bool) -> Outcome:
    """Run the load, drain it, and judge."""
    outcome = Outcome("soak")
    with installed("limits", keep=keep) as installation:
        outbox = OutboxTable(installation)
        workers = {
            "relay": installation.manage("relay", "run_relay", "agent"),
            "consumer": installation.manage("consumer", "consume", "agent"),
        }
        journals = [installation.folder / f"writer-{number}.txt" for number in range(plan.writers)]
        writers = [
            installation.writers(
                f"writer-{number}",
                *("load", "--journal", str(journal), "--backlog", str(plan.backlog)),
                *("--bytes", str(plan.payload_bytes)),
            )
            for number, journal in enumerate(journals)
        ]
        installation.wait(lambda: outbox.count("status = 'consumed'"), "the first events are consumed", timeout_s=90)
        watch = Watch(samples={name: [] for name in workers})
        _watch(installation, outbox, plan, workers=workers, journals=journals, watch=watch)
        for writer in writers:
            writer.stop()
        installation.wait(lambda: not _unfinished(outbox), "nothing is unfinished", timeout_s=_DRAIN_TIMEOUT_S)
        for worker in workers.values():
            worker.stop()
        committed = sum(map(_last_number, journals))
        left = outbox.count()
        rejected = int(outbox.execute("SELECT COUNT(*) FROM outbox_rejected_records")[0][0])
        dead = outbox.count("status = 'dead'")
        _report_sizes(outcome, watch)
        _report_counts(outcome, watch)
        outcome.sections.append(
            f"{committed:,} events in {watch.seconds[-1]:.0f} s, {watch.events[-1] / watch.seconds[-1]:,.0f} a second"
            f" consumed; {watch.pruned:,} rows pruned by {len(watch.cleaners)} runs of the cleaner, {left:,} left"
        )
        outcome.figures |= {"committed": committed, "pruned": watch.pruned, "left": left} | as_figures(watch)
        outcome.judge(
            "every event is consumed or pruned, none dead or rejected",
            f"{left + watch.pruned:,} of {committed:,}, {dead} dead, {rejected} rejected",
            held=left + watch.pruned == committed and not dead and not rejected,
        )
        _judge_logs(outcome, [*workers.values(), *watch.cleaners])
    return outcome


def _watch(
    installation: Installation,
    outbox: OutboxTable,
    plan: Plan,
    *,
    workers: dict[str, Process],
    journals: Sequence[Path],
    watch: Watch,
) -> None:
    began = time.monotonic()
    cleaner: Process | None = None
    next_cleaning_s, next_sample_s, seconds = 0.0, 0.0, 0.0
    while seconds < plan.minutes * 60:
        installation.look_after()
        if cleaner is not None and cleaner.ended is not None:
            _note_cleaner(cleaner, watch)
            cleaner, next_cleaning_s = None, seconds + plan.pause_s
        if cleaner is None and seconds >= next_cleaning_s:
            cleaner = installation.manage("cleaner", "outbox_prune", "agent", "--older-than", f"{plan.retention_s}s")
        if seconds >= next_sample_s:
            watch.seconds.append(seconds)
            watch.events.append(float(sum(map(_last_number, journals)) - _unfinished(outbox)))
            for name, worker in workers.items():
                watch.samples[name].append(worker.sample())
            next_sample_s += _SAMPLE_S
        time.sleep(0.05)
        seconds = time.monotonic() - began
    if cleaner is not None:
        cleaner.wait(timeout_s=_CLEANER_TIMEOUT_S)  # and not stop: it may just be starting
        _note_cleaner(cleaner, watch)


def _note_cleaner(cleaner: Process, watch: Watch) -> None:
    ended = cleaner.wait(timeout_s=0)
    watch.cleaners.append(cleaner)
    watch.cleaner_events.append(watch.events[-1])
    watch.cleaner_kib.append(float(ended.peak_kib))
    watch.pruned += pruned_count(cleaner.text)


def pruned_count(text: str) -> int:
    """Return how many consumed events the command says that it deleted."""
    for line in text.splitlines():
        if " deleted " in line and " consumed events " in line:
            return int(line.split(" deleted ")[1].split()[0].replace(",", ""))
    return 0


def _report_sizes(outcome: Outcome, watch: Watch) -> None:
    """Print and judge what the processes take, and the cleaner's peaks from run to run."""
    rows = []
    sizes: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        f"{name} {size.upper()}": (watch.events, [float(getattr(sample, size)) for sample in samples])
        for name, samples in watch.samples.items()
        for size in ("rss", "pss", "uss")
    }
    sizes["cleaner peak RSS"] = (watch.cleaner_events, watch.cleaner_kib)
    for name, (events, values) in sizes.items():
        try:
            flat = flatness(events, values, share=GROWTH_SHARE, floor=GROWTH_FLOOR_KIB)
        except ValueError as error:  # only in a run that is too short to tell anything
            outcome.sections.append(f"{name} is not judged: {error}")
            continue
        per_100k = flat.slope * 100_000
        rows.append(
            (name, *map(mib, (flat.start, flat.warm, flat.end, flat.peak)), f"{per_100k:+.1f}", mib(flat.limit))
        )
        outcome.figures[name] = asdict(flat) | {"kib_per_100k_events": per_100k}
        if name.endswith("RSS"):
            _judge_flat(outcome, name, flat)
    header = ("MiB", "start", "warm", "end", "max", "KiB per 100,000 events", "may grow by")
    outcome.sections.append(figures_table(header, rows))


def _judge_flat(outcome: Outcome, name: str, flat: Flatness) -> None:
    outcome.judge(
        f"{name} grows by {mib(flat.limit)} MiB at the most",
        f"{flat.growth / 1024:+.1f} MiB by medians, {flat.fitted / 1024:+.1f} MiB by the fit",
        held=flat.held,
    )


def _report_counts(outcome: Outcome, watch: Watch) -> None:
    for name, samples in watch.samples.items():
        for what in ("descriptors", "threads"):
            values = [float(getattr(sample, what)) for sample in samples]
            try:
                flat = flatness(watch.events, values, share=0.0, floor=_COUNTS_FLOOR)
            except ValueError as error:
                outcome.sections.append(f"{what} of the {name} are not judged: {error}")
                continue
            outcome.figures[f"{name} {what}"] = asdict(flat)
            figure = f"{flat.warm:.0f}, at the end {flat.end:.0f}, at the most {flat.peak:.0f}"
            outcome.judge(f"{what} of the {name} grow by {_COUNTS_FLOOR:.0f} at the most", figure, held=flat.held)


def _judge_logs(outcome: Outcome, processes: Sequence[Process]) -> None:
    errors = sum(process.errors for process in processes)
    warnings = [warning for process in processes for warning in process.warnings]
    outcome.figures |= {"errors": errors, "warnings": warnings}
    outcome.sections += ["\n".join(["warnings:", *warnings[:10]])] if warnings else []
    outcome.judge("errors in the logs, none", f"{errors}, and {len(warnings)} warnings", held=not errors)


def _unfinished(outbox: OutboxTable) -> int:
    return outbox.count("status IN ('pending', 'published')")


def _last_number(journal: Path) -> int:
    """Return the last whole line of a writer's journal."""
    if not journal.exists():
        return 0
    with journal.open("rb") as file:
        file.seek(max(journal.stat().st_size - 64, 0))
        lines = file.read().split(b"\n")[:-1]
    return int(lines[-1]) if lines else 0


def as_figures(watch: Watch) -> dict[str, Any]:
    """Return the samples for ``--json``."""
    return {
        "seconds": watch.seconds,
        "events": watch.events,
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in watch.samples.items()},
    }
