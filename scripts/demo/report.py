"""The tables at the end of a demo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from outbox.lifecycle import Status
from scripts.demo.audit import Audit
from scripts.demo.checks import Check
from scripts.demo.processes import Command
from scripts.demo.rows import Row
from scripts.demo.stage import Stage
from scripts.demo.story import Published

USER, PASSWORD = "admin", "demo"
_REASON_LENGTH = 200


def say_what_happened(audit: Audit, published: Published, running: Sequence[Command]) -> None:
    """Print the counts, the workers' own words and the speed."""
    by_status = Counter(row.status for row in audit.rows)
    print("\nWhat happened")
    _table((status.value, f"{by_status[status.value]:,}") for status in Status)
    ends = Counter((row.service, row.event_type, row.status) for row in audit.rows)
    print("\nWhich events of which service")
    _table((service, event_type, status, f"{count:,}") for (service, event_type, status), count in sorted(ends.items()))
    print("\nWhat the workers say")
    _table((command.line, said) for command in running for said in command.summary())
    failed = [row for row in audit.rows if row.retry_count]
    print()
    _table(
        [
            ("failed attempts, retried", f"{sum(row.retry_count for row in failed)} of {len(failed)} events"),
            ("snapshots published / kept", f"{len(published.snapshots):,} / {_conversations(published):,}"),
            ("speed", _speed(audit.rows)),
        ]
    )
    print("\nDead, with the reason that the admin shows")
    for row in audit.rows:
        if row.status == Status.DEAD:
            poison = audit.poison_of(row)
            fault = poison.fault if poison else "not expected"
            print(f"  {row.service} row {row.id}: {fault}\n    {row.reason.splitlines()[0][:_REASON_LENGTH]}")


def say_what_was_checked(checks: Sequence[Check]) -> None:
    """Print the checks, and the first cases where one does not hold."""
    print("\nChecked, row by row")
    _table(
        ("ok" if check.ok else "BROKEN", check.what, f"{check.held:,} of {check.of:,}")
        for check in checks
        if check.of or not check.ok
    )
    for check in checks:
        for case in check.broken:
            print(f"    {check.what}: {case}")


def say_how_to_look(stage: Stage) -> None:
    """Print how to open the admin on this demo's data."""
    print(
        f"\nLook at it in the admin, with relays and consumers running (on {stage.description}):\n"
        f"  make run\n"
        f"  http://127.0.0.1:8000/admin/   user {USER}, password {PASSWORD} (of this demo only)\n"
        f"Mend a dead event there, send it again and see it consumed."
    )


def _table(rows: Iterable[tuple[str, ...]]) -> None:
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _conversations(published: Published) -> int:
    return len({turn.conversation_id for turn in published.snapshots.values()})


def _speed(rows: Sequence[Row]) -> str:
    ends = [row.consumed_at for row in rows if row.consumed_at is not None]
    if not ends:
        return "nothing was consumed"
    seconds = (max(ends) - min(row.created_at for row in rows)).total_seconds()
    return f"{len(ends) / seconds:,.0f} events/s: {len(ends):,} in {seconds:.1f} s, first publish to last effect"
