"""Move rows of other services out of a table that was once shared."""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from typing import Any

from outbox.contrib.shared_table.relocation import Rehoming
from outbox.coordination.shutdown import stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.console import table
from outbox.management.reporting import explain_errors, positive
from outbox.registry.catalog import route_registry


class Command(OutboxCommand):
    help = (
        "Move unfinished rows that belong to other services out of a service's outbox table, to the tables of their "
        "owners, in the order of their ids. Finished rows stay. Stop it whenever you like and start it again: no row "
        "moves twice. Run it before new events of those keys are published, or their order is that of arrival. Exit "
        "code: 0 done or nothing to do, 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("service", nargs="?", default="agent", help="whose table to clear (default: agent)")
        parser.add_argument("--dry-run", action="store_true", help="say what would move; change nothing")
        parser.add_argument("--batch-size", type=positive, default=500, help="rows a transaction (default: 500)")

    def handle(self, *, service: str, dry_run: bool, batch_size: int, **_: Any) -> None:
        with explain_errors(), stop_on_signals() as stop:
            registry = route_registry()
            rehoming = Rehoming(registry.catalog.route(service), registry)
            with self.busy("counting rows"):
                survey = rehoming.survey()
            total = sum(each.rows for each in survey)
            if dry_run or not total:
                rows = [(each.event_type, each.owner, each.status, f"{each.rows:,}") for each in survey]
                self._report(("event type", "owner", "status", "rows"), rows, f"{total:,} rows would move.")
                return
            moved: Counter[tuple[str, str]] = Counter()
            with self.progress("rows moved", total) as draw:
                for batch in rehoming.run(batch_size=batch_size):
                    moved.update({(each.event_type, each.owner): each.rows for each in batch})
                    draw(moved.total())
                    if stop.is_set:
                        break
            done = [(event_type, owner, f"{number:,}") for (event_type, owner), number in sorted(moved.items())]
            unfinished = "; stopped, start it again for the rest" if stop.is_set else ""
            self._report(("event type", "owner", "rows"), done, f"{moved.total():,} rows moved{unfinished}.")

    def _report(self, header: Sequence[str], rows: Sequence[Sequence[str]], summary: str) -> None:
        self.show(*([table(header, rows, right=("rows",))] if rows else []), summary)
