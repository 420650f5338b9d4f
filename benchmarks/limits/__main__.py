"""`make limits`: whether memory is bounded and stays flat, a backlog costs no speed, and pruning disturbs nobody."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.limits import backlog, memory, prune, soak
from benchmarks.report import Outcome
from outbox.management.console import console_on, progress, show

_EXPERIMENTS: Final = ("memory", "soak", "backlog", "prune")
_BROKEN_HARNESS: Final = 2
_QUIET_LOAD: Final = 0.5


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            f"""\
            Run the project's real processes on the MariaDB and Kafka of `make services`, measure them from outside,
            and hold the figures against the limits. Each experiment makes its database anew and drops it at the end.
            Exit code: 0 every limit was held, 1 one was breached, {_BROKEN_HARNESS} the harness itself failed."""
        ),
    )
    parser.add_argument("experiment", choices=(*_EXPERIMENTS, "all"), nargs="?", default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--keep", action="store_true", help="leave the database and the logs")
    parser.add_argument("--rows", type=int, help="rows: memory 160, backlog 2,000,000, prune 10,000,000")
    parser.add_argument("--payload", type=int, help="payload bytes; soak and backlog: 1000, prune: 320, the least")
    of_soak = parser.add_argument_group("soak")
    of_soak.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    of_soak.add_argument("--backlog", type=int, default=5_000, help="unfinished events that writers keep (5,000)")
    of_soak.add_argument("--load-writers", type=int, default=1, help="processes that publish at full load (1)")
    of_soak.add_argument("--retention", type=int, default=20, help="seconds that a consumed row stays (20)")
    of_soak.add_argument("--pause", type=float, default=3.0, help="seconds between two runs of the cleaner (3)")
    of_backlog = parser.add_argument_group("backlog")
    of_backlog.add_argument("--small-rows", type=int, default=10_000, help="rows of the small backlog (10,000)")
    of_backlog.add_argument("--repeats", type=int, default=5, help="small ones before and after the big one (5)")
    of_prune = parser.add_argument_group("prune")
    of_prune.add_argument("--writers", type=int, default=4, help="processes that publish meanwhile (4)")
    of_prune.add_argument("--rate", type=float, default=200.0, help="transactions a second, all together (200)")
    of_prune.add_argument("--batch-size", type=int, help="rows of one transaction of the command (its default)")
    of_prune.add_argument("--before", type=float, default=60.0, help="seconds of writing before (60)")
    of_prune.add_argument("--after", type=float, default=30.0, help="seconds of writing afterwards (30)")
    return parser.parse_args(arguments)


def run(name: str, options: argparse.Namespace) -> Outcome:
    """Run one experiment."""
    if name == "memory":
        return memory.measure(rows=options.rows or 160, keep=options.keep)
    if name == "soak":
        plan = soak.Plan(
            minutes=options.minutes,
            backlog=options.backlog,
            writers=options.load_writers,
            payload_bytes=options.payload or 1_000,
            retention_s=options.retention,
            pause_s=options.pause,
        )
        return soak.measure(plan, keep=options.keep)
    if name == "backlog":
        return backlog.measure(
            rows=options.rows or 2_000_000,
            small_rows=options.small_rows,
            repeats=options.repeats,
            payload_bytes=options.payload or 1_000,
            keep=options.keep,
        )
    return prune.measure(
        rows=options.rows or 10_000_000,
        payload_bytes=options.payload or 320,
        writers=options.writers,
        rate=options.rate,
        batch_size=options.batch_size,
        before_s=options.before,
        after_s=options.after,
        keep=options.keep,
    )


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_BROKEN_HARNESS))
    outcomes: list[Outcome] = []
    names = _EXPERIMENTS if options.experiment == "all" else (options.experiment,)
    console = console_on(sys.stdout)
    try:
        with progress(console, "experiments", len(names), is_still=True) as draw:
            for name in names:
                load = os.getloadavg()[0]
                outcomes.append(run(name, options))
                outcomes[-1].figures["load_before"] = load
                if load > _QUIET_LOAD and len(outcomes) == 1:  # later ones see what we did ourselves
                    outcomes[-1].sections.append(f"others were at work: the load was {load:.1f} before the start")
                show(console, *outcomes[-1].parts(), "")
                draw(len(outcomes))
    except Exception:  # noqa: BLE001 - whatever it is, it is no breach
        traceback.print_exc()
        return _BROKEN_HARNESS
    finally:
        if options.json:
            report = {outcome.experiment: outcome.as_json() for outcome in outcomes}
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(outcome.held for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
