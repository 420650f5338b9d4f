"""``python -m tests.chaos``: run it all, and say whether the promises were kept."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from tests.chaos import other_keys, report, transactions
from tests.chaos.cluster import ISOLATION_LEVELS, Cluster
from tests.chaos.errors import MissedError
from tests.chaos.evidence import Evidence
from tests.chaos.handler_checks import judge_handlers
from tests.chaos.kinds import KINDS
from tests.chaos.lanes import Lanes
from tests.chaos.look_checks import judge_looks, operators_looks
from tests.chaos.processes import judge_processes
from tests.chaos.schedule import LEAST_INJECTED, plan, rare
from tests.chaos.servers import DATABASES
from tests.chaos.takeovers import judge_take_overs, take_overs
from tests.chaos.verdict import Verdict, judge, judge_lags, judge_transactions

_LOOK_S: Final = 0.5
_BROKEN_HARNESS: Final = 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    names = "\n".join(f"  {name:<18} {kind.summary}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.dedent(
            """\
            Start a database and a Kafka of its own, relays and consumers of two services and processes that publish;
            let everything go wrong at random moments; then undo it all, wait until nothing is on its way, and hold
            every row against what writers and handlers wrote down. Exit code: 0 all promises were kept, 1 a breach
            was found, or a run of 25 minutes or more injected a kind fewer than ten times, 2 the harness itself
            failed. The same seed gives the same faults at the same times."""
        ),
        epilog=f"faults:\n{names}",
    )
    parser.add_argument("--database", choices=DATABASES, default="mariadb", help="default: mariadb")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults are injected (default: 2)")
    parser.add_argument("--seed", type=int, help="all random choices come from it (default: a new one, printed)")
    parser.add_argument("--rate", type=float, default=40.0, help="events a second, all writers together (default: 40)")
    parser.add_argument(
        "--faults", metavar="A,B,C", help="only these faults, or groups of them: kafka, relay, handlers, … "
    )
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for quiet (default: 300)")
    parser.add_argument(
        "--isolation-level",
        choices=ISOLATION_LEVELS,
        default=ISOLATION_LEVELS[0],
        help=f"what consumers read of transactions (default: {ISOLATION_LEVELS[0]})",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs, also without a breach")
    parsed = parser.parse_args(arguments)
    try:
        parsed.faults = _faults(parsed.faults)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def _faults(given: str | None) -> list[str]:
    if not given:
        return list(KINDS)
    found: list[str] = []
    for word in given.split(","):
        matching = [name for name, kind in KINDS.items() if word in {name, kind.lane} or name.startswith(f"{word}-")]
        if not matching:
            raise ValueError(f"there is no fault {word}; --help names them all")
        found += matching
    return found


def say(text: str = "") -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}" if text else "", flush=True)


def run(options: argparse.Namespace, seed: int) -> int:
    """Run it; return the exit code."""
    cluster = Cluster(
        database=options.database,
        seed=seed,
        rate=options.rate,
        has_own_disk="database-full" in options.faults,
        isolation_level=options.isolation_level,
    )
    code = _BROKEN_HARNESS
    try:
        say(
            f"{options.database}, seed {seed}, {options.minutes:g} minutes, {options.rate:g} events a second, "
            f"folder {cluster.work}"
        )
        cluster.up()
        lanes = _inject(cluster, options, seed)
        verdict, evidence = _look(cluster, options)
        found = take_overs(cluster, evidence, lanes.happenings)
        judge_take_overs(verdict, found)
        held = other_keys.delays(cluster, evidence, lanes.happenings)
        other_keys.judge_delays(verdict, held)
        looks = operators_looks(cluster, lanes.happenings)
        judge_looks(verdict, looks)
        sections = [*found.told(), *other_keys.told(held), *looks.told()]
        code = _tell(lanes, verdict, evidence, sections, options, seed)
    finally:
        cluster.over.set()
        cluster.dispose()
        if options.keep or code:
            say(f"logs and journals are in {cluster.work}")
        else:
            shutil.rmtree(cluster.root, ignore_errors=True)
    return code


def _inject(cluster: Cluster, options: argparse.Namespace, seed: int) -> Lanes:
    """Let everything go wrong for as long as was asked for."""
    end_s = options.minutes * 60
    lanes = Lanes(cluster, plan(seed, options.minutes, options.faults), end_s=end_s, tell=say)
    if "kafka-watched" in options.faults:
        with suppress(MissedError):  # the fault tries again
            cluster.pages.be_ready()
    say("everything has been started")
    cluster.begin()
    lanes.start()
    with cluster.database() as database:
        while cluster.elapsed_s < end_s:
            cluster.tend(database)
            cluster.rest(_LOOK_S)
        cluster.over.set()
        lanes.join()
    return lanes


def _look(cluster: Cluster, options: argparse.Namespace) -> tuple[Verdict, Evidence]:
    """Undo everything, wait for quiet, end the workers, and judge."""
    say("every fault is undone; waiting until nothing is on its way")
    began = time.monotonic()
    is_quiet = cluster.calm_down(patience_s=options.patience)
    if is_quiet and "transactions" in options.faults:
        transactions.end_topics(cluster)
        is_quiet = cluster.is_quiet_within(options.patience)
    say(f"{'quiet' if is_quiet else 'NOT quiet'} after {time.monotonic() - began:.1f} s; the workers are asked to end")
    lags = cluster.lags() if is_quiet else {}
    still_open = cluster.open_transactions() if is_quiet else []
    troubles = cluster.finish(is_quiet=is_quiet)
    evidence = Evidence(cluster)
    verdict = judge(evidence, is_quiet=is_quiet)
    judge_handlers(verdict, evidence, cluster.crew.members)
    judge_processes(verdict, cluster.crew, cluster.writers, killed_itself=evidence.killed_itself)
    judge_lags(verdict, lags)
    judge_transactions(verdict, still_open)
    for trouble in troubles:
        verdict.note(9, trouble)
    return verdict, evidence


def _tell(
    lanes: Lanes, verdict: Verdict, evidence: Evidence, measured: list[str], options: argparse.Namespace, seed: int
) -> int:
    counts = report.injected(lanes.happenings, evidence)
    sections = [
        report.table_of_faults(lanes.happenings, counts),
        report.table_of_events(evidence),
        measured,
        report.table_of_promises(verdict),
    ]
    for section in sections:
        print()
        print("\n".join(section))
    print("\n".join(report.breaches(verdict, evidence)))
    possible = set(options.faults) - report.impossible_kinds(lanes.happenings).keys()
    too_rare = rare(counts, minutes=options.minutes, faults=possible)
    if too_rare:
        print(f"\ninjected fewer than {LEAST_INJECTED} times: {', '.join(too_rare)}")
    broken = any(happening.outcome == "broken" for happening in lanes.happenings)
    count = len(verdict.breaches)
    print(
        f"\n{options.database}, seed {seed}: {f'{count} BREACHES' if count else 'every promise was kept'}", flush=True
    )
    return 1 if count or too_rare else _BROKEN_HARNESS if broken else 0


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_BROKEN_HARNESS))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    try:
        return run(options, seed)
    except Exception:  # noqa: BLE001 - whatever it is, it is not a breach
        traceback.print_exc()
        return _BROKEN_HARNESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
