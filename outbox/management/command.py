"""What the commands of the outbox have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from django.core.management.base import BaseCommand
from rich.console import Console, RenderableType

from outbox.management.console import busy, console_on, progress, show


class OutboxCommand(BaseCommand):
    """A command whose system checks ask no database: an unavailable one is waited for, or named in one line.

    Since Django 6.1 checks that name no database ask all of them, and end in a traceback where one is unavailable:
    ``django.core.checks.registry``. ``manage.py check --database`` asks it.
    """

    console: Console
    """Writes to the standard output; see ``outbox.management.console``."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        color = True if options["force_color"] else False if options["no_color"] else None
        self.console = console_on(options.get("stdout") or sys.stdout, color=color)
        return super().execute(*args, **options)

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        return {**super().get_check_kwargs(options), "databases": []}

    def show(self, *parts: RenderableType) -> None:
        """Print tables and texts below each other."""
        show(self.console, *parts)

    def busy(self, label: str) -> AbstractContextManager[object]:
        """Say on a terminal what is waited for while the block runs."""
        return busy(self.console, label)

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Draw a bar on a terminal while the block runs; yield the function to tell how many are done."""
        return progress(self.console, label, total)
