"""Delete what is done with."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from outbox.coordination.shutdown import StopFlag, stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.reporting import duration, explain_errors, explain_outage, positive, share
from outbox.operations.durations import humanise
from outbox.operations.pruning import PruneResult, PruningOrder, prune
from outbox.registry.catalog import repository_of
from outbox.storage.repository import OutboxRepository
from outbox.workers.build import routes_of


class Command(OutboxCommand):
    help = (
        "Delete consumed events that are older than a given time, of the named services or of all. Events that are "
        "not consumed, and dead ones, stay. Works in small transactions beside running workers; SIGTERM finishes the "
        "batch in hand, and the next run goes on. An outage between two batches is waited out. Exit code: 0 done or "
        "stopped, 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        consumed_help = "consumed longer ago than this, as 36h, 7d or 2w (default: 7d)"
        rejected_help = "also delete rejected records that a person resolved longer ago than this"
        parser.add_argument("services", nargs="*", metavar="service", help="services to prune (default: all)")
        parser.add_argument("--older-than", type=duration, metavar="AGE", default="7d", help=consumed_help)
        parser.add_argument("--rejected-older-than", type=duration, metavar="AGE", help=rejected_help)
        parser.add_argument("--batch-size", type=positive, default=500, help="rows of one transaction (default: 500)")
        busy_help = "share of the time to work; the rest is left to others (default: 0.5; 1 never rests)"
        parser.add_argument("--busy-share", type=share, metavar="SHARE", default=0.5, help=busy_help)
        parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")

    def handle(self, *, services: list[str], dry_run: bool, **options: Any) -> None:
        order = PruningOrder(
            options["older_than"],
            options["rejected_older_than"],
            options["batch_size"],
            options["busy_share"],
            dry_run=dry_run,
        )
        verb = "would delete" if dry_run else "deleted"
        with explain_errors(), explain_outage(), stop_on_signals() as stop:
            repositories = [repository_of(route.service) for route in routes_of(services)]
            finished: list[PruneResult] = []
            with self.progress("rows deleted", self._total(repositories, order, stop)) as draw:

                def tell(_service: str, deleted: int) -> None:
                    draw(sum(done.count for done in finished) + deleted)

                for done in prune(repositories, order, stop, tell):
                    finished.append(done)
                    self.show(
                        f"{done.service}: {verb} {done.count:,} {done.what} older than {humanise(done.older_than)}"
                    )
            if stop.is_set:
                self.show("stopped; run it again to go on")

    def _total(self, repositories: Sequence[OutboxRepository], order: PruningOrder, stop: StopFlag) -> int:
        """Count what there is to delete, for a bar: counting costs the database something, so for nothing else."""
        if order.dry_run or not self.console.is_terminal:
            return 0
        with self.busy("counting rows"):
            counting = prune(repositories, replace(order, dry_run=True), stop, tell=lambda _, __: None)
            return sum(done.count for done in counting)
