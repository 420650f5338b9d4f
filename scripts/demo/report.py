"""The tables at the end of a demo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from outbox.lifecycle import Status
from outbox.management.console import show, table
from scripts.demo.audit import Audit
from scripts.demo.checks import Check
from scripts.demo.processes import Command
from scripts.demo.rows import Row
from scripts.demo.stage import Stage
from scripts.demo.story import Published

USER, PASSWORD = "admin", "demo"
_REASON_LENGTH = 200


def say_what_happened(console: Console, audit: Audit, published: Published, running: Sequence[Command]) -> None:
    """Print the counts, the workers' own words and the speed."""
    by_status = Counter(row.status for row in audit.rows)
    _show(console, "What happened", ((status.value, f"{by_status[status.value]:,}") for status in Status))
    ends = Counter((row.service, row.event_type, row.status) for row in audit.rows)
    of_service = ((*end, f"{count:,}") for end, count in sorted(ends.items()))
    _show(console, "Which events of which service", of_service)
    _show(console, "What the workers say", ((command.line, said) for command in running for said in command.summary()))
    failed = [row for row in audit.rows if row.retry_count]
    _show(
        console,
        "Retries, snapshots and speed",
        [
            ("failed attempts, retried", f"{sum(row.retry_count for row in failed)} of {len(failed)} events"),
            ("snapshots published / kept", f"{len(published.snapshots):,} / {_conversations(published):,}"),
            ("speed", _speed(audit.rows)),
        ],
    )
    show(console, "", Text("Dead, with the reason that the admin shows", "bold"))
    for row in audit.rows:
        if row.status == Status.DEAD:
            poison = audit.poison_of(row)
            fault = poison.fault if poison else "not expected"
            reason = row.reason.splitlines()[0][:_REASON_LENGTH]
            show(console, f"  {row.service} row {row.id}: {fault}", f"    {reason}")


def say_what_was_checked(console: Console, checks: Sequence[Check]) -> None:
    """Print the checks, and the first cases where one does not hold."""
    rows = (
        (Text("ok", "green") if check.ok else Text("BROKEN", "bold red"), check.what, f"{check.held:,} of {check.of:,}")
        for check in checks
        if check.of or not check.ok
    )
    _show(console, "Checked, row by row", rows)
    for check in checks:
        for case in check.broken:
            show(console, f"    {check.what}: {case}")


def say_how_to_look(console: Console, stage: Stage) -> None:
    """Print how to open the admin on this demo's data."""
    show(
        console,
        f"\nLook at it in the admin, with relays and consumers running (on {stage.description}):\n"
        f"  make run\n"
        f"  http://127.0.0.1:8000/admin/   user {USER}, password {PASSWORD} (of this demo only)\n"
        f"Mend a dead event there, send it again and see it consumed.",
    )


def _show(console: Console, title: str, rows: Iterable[tuple[str | Text, ...]]) -> None:
    """Show a title, and below it an indented table without a header."""
    lines = list(rows)
    cells = table([""] * (1 + len(lines[0])), [("", *line) for line in lines])
    cells.show_header = False
    show(console, "", Text(title, "bold"), cells)


def _conversations(published: Published) -> int:
    return len({turn.conversation_id for turn in published.snapshots.values()})


def _speed(rows: Sequence[Row]) -> str:
    ends = [row.consumed_at for row in rows if row.consumed_at is not None]
    if not ends:
        return "nothing was consumed"
    seconds = (max(ends) - min(row.created_at for row in rows)).total_seconds()
    return f"{len(ends) / seconds:,.0f} events/s: {len(ends):,} in {seconds:.1f} s, first publish to last effect"
