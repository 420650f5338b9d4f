"""The Django admin of the outbox: pages for an operator. Rows are read-only.

Who may see and do what: ``outbox.admin.access``. Why the pages stay fast on large tables: ``outbox.admin.paging`` and
``outbox.admin.filters``. A service's app registers its outbox model with ``OutboxMessageAdmin`` and
its other tables with ``RecordAdmin``.
"""

from __future__ import annotations

from outbox.admin import dead, rejected, routes  # noqa: F401 - registers their pages
from outbox.admin.access import may_operate
from outbox.admin.messages import OutboxMessageAdmin
from outbox.admin.records import RecordAdmin

__all__ = ["OutboxMessageAdmin", "RecordAdmin", "may_operate"]
