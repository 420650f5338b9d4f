"""Print which index each of the outbox's queries uses, on a table of a million rows.

    DATABASE_URL=mysql://… python -m benchmarks.explain [--rows 1000000]

It fills ``agent_outbox_messages`` of that database (which must be empty or hold an earlier fill), so give it one of its
own. The table in docs/indexes.md is this program's output; ``tests/integration/test_query_plans.py`` holds the plans.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartflow.settings")
os.environ.setdefault("DEBUG", "true")

import django

django.setup()

from django.core.management import call_command  # noqa: E402

from benchmarks import plans  # noqa: E402
from outbox.management.console import busy, console_on, show, table  # noqa: E402
from outbox.registry.catalog import repository_of  # noqa: E402

_SHOWN: Final = ("select_type", "table", "type", "key", "key_len", "rows", "Extra", "QUERY PLAN")


def main() -> None:
    """Parse, fill and explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    call_command("migrate", verbosity=0)
    repository = repository_of("agent")
    console = console_on(sys.stdout)
    with busy(console, "filling the table"):
        plans.fill(repository.route, parser.parse_args().rows)
    for name, query in plans.queries(repository).items():
        explained = plans.explain(repository, query)
        show(console, "", f"## {name}: {explained.spent_ms:.1f} ms, {len(explained.statements)} statements")
        for statement in explained.statements:
            columns = [column for column in _SHOWN if any(column in row for row in statement.plan)]
            rows = [[str(row.get(column, "")) for column in columns] for row in statement.plan]
            show(console, "", table(columns, rows))


if __name__ == "__main__":
    main()
