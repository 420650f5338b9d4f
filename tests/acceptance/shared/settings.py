"""Settings of the processes that share a table with the Go program."""

from __future__ import annotations

from smartflow.settings import *  # noqa: F403
from smartflow.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.acceptance.shared"]
