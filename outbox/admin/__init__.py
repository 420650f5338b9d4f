"""The Django admin of the outbox: pages for an operator. Rows are read-only.

Who may see and do what: ``outbox.admin.access``. Why the pages stay fast on large tables: ``outbox.admin.paging`` and
``outbox.admin.filters``. A service's app registers its outbox model with ``OutboxMessageAdmin`` and
its other tables with ``RecordAdmin``.
"""

from __future__ import annotations

from outbox.admin.dead import DeadEventAdmin
from outbox.admin.messages import OutboxMessageAdmin
from outbox.admin.records import RecordAdmin
from outbox.admin.rejected import RejectedRecordAdmin
from outbox.admin.routes import RouteAdmin

__all__ = ["DeadEventAdmin", "OutboxMessageAdmin", "RecordAdmin", "RejectedRecordAdmin", "RouteAdmin"]
