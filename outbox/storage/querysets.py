"""Where querysets on the outbox's tables begin: pages and test helpers narrow them."""

from __future__ import annotations

from typing import TypeVar

from django.db.models import Model, QuerySet

M = TypeVar("M", bound=Model)


def rows_of(model: type[M], using: str) -> QuerySet[M]:
    """Return all rows of ``model`` on an alias, whatever managers the model has."""
    return model._base_manager.using(using)  # noqa: SLF001 - documented by Django, in spite of its name
