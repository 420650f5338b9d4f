"""The Django app of the `shared` service."""

from __future__ import annotations

from django.apps import AppConfig


class SharedConfig(AppConfig):
    """The `shared` service."""

    name = "tests.acceptance.shared"
    label = "shared"
    default_auto_field = "django.db.models.BigAutoField"
