"""What the commands of the outbox have in common."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand


class OutboxCommand(BaseCommand):
    """A command whose system checks ask no database: one that is away is waited for, or said in one line.

    Since Django 6.1 checks that name no database ask all of them, and end in a traceback where one is away:
    ``django.core.checks.registry``. ``manage.py check --database`` asks it.
    """

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        return {**super().get_check_kwargs(options), "databases": []}
