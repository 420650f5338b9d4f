"""`make bench`: how fast it is, as ratios to what the servers give in the same run on the same machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import database
from benchmarks.speed import backlog, consumer, cost, disturbance, latency, plots, publish, relay, scale
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import Result, number
from outbox.management.console import console_on, progress, show

_SUITES: Final[dict[str, Callable[[Plan], Result]]] = {
    "publish": publish.measure,
    "cost": cost.measure,
    "relay": relay.measure,
    "consumer": consumer.measure,
    "latency": latency.measure,
    "writers": disturbance.measure,
    "scale": scale.measure,
    "backlog": backlog.measure,
}
_QUICK: Final = ("publish", "cost", "relay", "consumer")
_FEWEST_EVENTS: Final = 4_000
_BROKEN_HARNESS: Final = 2
_QUIET_LOAD: Final = 0.5
_REASONS: Final = "docs/performance.md, What falls short, and why"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            f"""\
            Run the project's real processes and a ceiling, the least that the servers can be asked for the same, in
            turn, and print for each line its target, figure, ceiling and ratio: medians, and what they lie between.
            Suites: {", ".join(_SUITES)} (default: all; with --quick: {", ".join(_QUICK)}).
            Each makes the database smartflow_bench and its topics anew and removes them at the end.
            Exit code: 0; 1 with --quick when a count misses its target; {_BROKEN_HARNESS} the harness itself failed."""
        ),
    )
    parser.add_argument("suites", nargs="*", type=_suite, metavar="suite", help="what to measure")
    parser.add_argument("--events", type=_events, help="events of a backlog (50,000; quick: 5,000)")
    parser.add_argument("--payload", type=_positive, default=1_000, help="bytes of a payload column (1,000)")
    parser.add_argument("--processes", type=_several, default=(1, 2, 4), help="of the curves (1,2,4)")
    parser.add_argument("--repeats", type=_positive, help="times that each line is measured (3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="length of a phase that ends by the clock (20; quick: 4)")
    parser.add_argument("--database", default="mariadb", metavar="SERVER", help="mariadb (default), mysql, or a URL")
    parser.add_argument("--broker", metavar="SERVERS", help="bootstrap servers (SMARTFLOW_KAFKA_SERVERS)")
    parser.add_argument("--quick", action="store_true", help="small; judges statements and bytes, and no times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the curves there, such as docs")
    parser.add_argument("--keep", action="store_true", help="leave the database and the logs")
    return parser.parse_args(arguments)


def _suite(text: str) -> str:
    if text not in _SUITES:
        raise argparse.ArgumentTypeError(f"no suite {text!r}; there are {', '.join(_SUITES)}")
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _events(text: str) -> int:
    value = int(text)
    if value < _FEWEST_EVENTS:
        raise argparse.ArgumentTypeError(f"must be at least {_FEWEST_EVENTS:,}, got {value}: a speed is of batches")
    return value


def _several(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, text.split(",")))


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what the options ask for."""
    quick = options.quick
    return Plan(
        events=options.events or (5_000 if quick else 50_000),
        payload=options.payload,
        processes=options.processes,
        repeats=options.repeats or (1 if quick else 3),
        seconds=options.seconds or (4.0 if quick else 20.0),
        quick=quick,
        keep=options.keep,
    )


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_BROKEN_HARNESS))
    database.choose(options.database)
    if options.broker:
        os.environ["SMARTFLOW_KAFKA_SERVERS"] = options.broker
    plan = plan_of(options)
    server = database.version()
    load = os.getloadavg()[0]
    results: list[Result] = []
    broken = False
    names = options.suites or (_QUICK if plan.quick else tuple(_SUITES))
    console = console_on(sys.stdout)
    with progress(console, "suites", len(names), is_still=True) as draw:
        for done, name in enumerate(names, start=1):
            began = time.monotonic()
            try:
                result = _SUITES[name](plan)
            except Exception:  # noqa: BLE001 - whatever it is, it says nothing about the targets; the others may be fine
                traceback.print_exc()
                broken = True
                continue
            result.notes.append(f"{time.monotonic() - began:.0f} s")
            results.append(result)
            show(console, *result.parts(counted_only=plan.quick), "")
            for curve in result.curves if options.plots else ():
                show(console, str(plots.save(curve, options.plots)))
            if options.json:
                options.json.write_text(json.dumps(_report(results, plan, server, load), indent=1) + "\n")
            draw(done)
    code = conclude(results, quick=plan.quick, load=load)
    print(f"the database was {server}")
    return _BROKEN_HARNESS if broken else code


def _report(results: Sequence[Result], plan: Plan, server: str, load: float) -> dict[str, Any]:
    """Return all figures, and on what they were taken."""
    return {
        "plan": asdict(plan),
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "database": server,
            "load_before": load,
        },
        "suites": {result.suite: result.as_json(counted_only=plan.quick) for result in results},
    }


def conclude(results: Sequence[Result], *, quick: bool, load: float) -> int:
    """Say what fell short; return the exit code."""
    short = [(result.suite, line) for result in results for line in result.fell_short(counted_only=quick)]
    for suite, line in short:
        ratio = "" if line.ratio is None else f", ratio {line.ratio:.2f}"
        print(f"SHORT  {suite}: {line.name}: {number(line.figure)} {line.unit}{ratio}; asked for {line.target}")
    if short:
        print(f"what such shortfalls come from: {_REASONS}")
    judged = sum(len(result.judged(counted_only=quick)) for result in results)
    print(f"{judged} targets were judged, {judged - len(short)} are met")
    if load > _QUIET_LOAD and not quick:
        print(f"others were at work: the load was {load:.1f} before the start")
    return 1 if short and quick else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
