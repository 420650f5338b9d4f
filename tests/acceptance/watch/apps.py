"""The Django app that watches statements."""

from __future__ import annotations

from django.apps import AppConfig


class WatchConfig(AppConfig):
    """Installs the watcher on every connection."""

    name = "tests.acceptance.watch"
    label = "watch"

    def ready(self) -> None:
        from tests.acceptance.watch import statements

        statements.install()
