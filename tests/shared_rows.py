"""A service whose table is shared with other software, which calls the column of event types otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from outbox.fields import KeyField
from outbox.models import OutboxMessage


class SharedOutboxMessage(OutboxMessage):
    """An event of a service that no installed app declares: its table is there while a test asks for it."""

    service = "shared"
    event_type = KeyField(max_length=64, db_column="biz_type")

    class Meta(OutboxMessage.Meta):
        abstract = False
        app_label = "toys"
        db_table = "shared_outbox_messages"


@contextmanager
def shared_table(alias: str) -> Iterator[None]:
    """Make the table, and drop it at the end."""
    with connections[alias].schema_editor() as editor:
        editor.create_model(SharedOutboxMessage)
    try:
        yield
    finally:
        with connections[alias].schema_editor() as editor:
            editor.delete_model(SharedOutboxMessage)
