"""Settings of the processes that the acceptance tests start: the project's own, and the probe service beside it."""

from __future__ import annotations

from smartflow.settings import *  # noqa: F403
from smartflow.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.acceptance.probe"]
