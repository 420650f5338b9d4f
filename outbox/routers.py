"""A database router: what belongs to a service's app is read and written on the alias that its route names.

A handler's ORM queries then run on the database whose transaction marks the event consumed.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Model

from outbox.models import service_route
from outbox.registry.catalog import service_models

__all__ = ["ServiceRouter"]


class ServiceRouter:
    """Put it into ``DATABASE_ROUTERS`` where a service's route names another alias than ``default``."""

    def db_for_read(self, model: type[Model], **_: Any) -> str | None:
        return _alias_of(model)

    def db_for_write(self, model: type[Model], **_: Any) -> str | None:
        return _alias_of(model)


def _alias_of(model: type[Model]) -> str | None:
    for service, outbox_model in service_models().items():
        if outbox_model._meta.app_label == model._meta.app_label:
            return service_route(service).database
    return None
