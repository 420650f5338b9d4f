"""The project's settings with its own five services, and the watcher beside them."""

from __future__ import annotations

from smartflow.settings import *  # noqa: F403
from smartflow.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.acceptance.watch"]
