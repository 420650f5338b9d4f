"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class SharedTableConfig(AppConfig):
    """Has rows of event types that other services own left out wherever a service's table is read."""

    name = "outbox.contrib.shared_table"
    label = "outbox_shared_table"
    verbose_name = "Outbox: shared table"
    outbox_tables_were_shared = True
