"""Settings of the demo: the project's own, and an app with an event that can fail on purpose."""

from __future__ import annotations

from smartflow.settings import *  # noqa: F403
from smartflow.settings import INSTALLED_APPS as _OF_THE_PROJECT

INSTALLED_APPS = [*_OF_THE_PROJECT, "scripts.demo.app"]
