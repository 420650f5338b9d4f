"""Which installation a database's outbox tables are of: a random id beside them, in each database that has such tables.

Records carry the id of the database that holds their row. So a consumer tells records whose rows lie elsewhere from its
own: two installations that share topics and groups by mistake would take each other's records in silence. A copy of a
database has the id of its original until ``manage.py outbox_installation --renew``.
"""

from __future__ import annotations

import uuid

from outbox.models import Installation


def installation_id(using: str) -> str:
    """Return the id in the database ``using``. Where there is none, make it: of several at once, the first wins.

    :raises DatabaseError: the database is unavailable, or its table is not migrated.
    """
    found = Installation.objects.using(using).values_list("installation_id", flat=True)
    known = found.first()
    if known is None:
        new = Installation(installation_id=str(uuid.uuid4()))
        Installation.objects.using(using).bulk_create([new], ignore_conflicts=True)
        known = found.get()
    return known


def renew_installation_id(using: str) -> str:
    """Give the database ``using`` a new id and return it; workers that run know the old one until they start again.

    :raises DatabaseError: the database is unavailable, or its table is not migrated.
    """
    new = str(uuid.uuid4())
    Installation.objects.using(using).update_or_create(defaults={"installation_id": new}, id=1)
    return new


class InstallationId:
    """The id in one database, read when it is asked for first. For a worker, which reads it once."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._known = ""

    def __call__(self) -> str:
        """Return the id.

        :raises DatabaseError: the database is unavailable, or its table is not migrated.
        """
        self._known = self._known or installation_id(self._using)
        return self._known
