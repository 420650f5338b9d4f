"""The Django app of the `probe` service."""

from __future__ import annotations

from django.apps import AppConfig


class ProbeConfig(AppConfig):
    """The `probe` service."""

    name = "tests.acceptance.probe"
    label = "probe"
    default_auto_field = "django.db.models.BigAutoField"
