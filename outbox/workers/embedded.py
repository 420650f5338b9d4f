"""What the table broker needs of the outbox: the published rows of the shards that one consumer leases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from django.db.utils import DatabaseError, InterfaceError

from outbox.conf import outbox_settings
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, Presence, ShardLeases, new_worker_id
from outbox.declarations.routes import ServiceRoute
from outbox.fields import SHARD_COUNT
from outbox.log_text import get_logger
from outbox.registry.catalog import repository_of
from outbox.storage.repository import OutboxRepository

logger = get_logger(__name__)


class LeasedRows:
    """The published rows of ``repository`` in the shards that ``leases`` hold, kept by ``heartbeat`` meanwhile."""

    def __init__(self, repository: OutboxRepository, leases: ShardLeases, heartbeat: Heartbeat) -> None:
        self._repository, self._leases, self._heartbeat = repository, leases, heartbeat
        heartbeat.start()

    @property
    def assignments(self) -> Mapping[int, int]:
        return self._leases.assignments

    def fetch(self, limit: int) -> list[tuple[int, str, str, int]]:
        if self._leases.due:
            self._leases.refresh()
        held = self._leases.held
        if not held:
            return []
        return self._repository.published(shards=None if len(held) == SHARD_COUNT else held, limit=limit)

    def close(self) -> None:
        """Give the shards back; without the database, leave them to run out."""
        self._heartbeat.close(deregister=False)
        try:
            self._leases.release()
        except (DatabaseError, InterfaceError) as error:
            service = self._repository.route.service
            logger.warning("consumer of %s: shard leases run out by themselves: %s", service, error)


def open_rows(route: ServiceRoute) -> LeasedRows:
    """Join the consumers of ``route`` that share its published rows."""
    options = outbox_settings().leases
    presence = Presence(
        service=route.service,
        role=f"{CONSUMER}-shards",
        worker_id=new_worker_id(),
        using=route.database,
        ttl=timedelta(seconds=options.ttl_seconds),
    )
    interval = timedelta(seconds=options.heartbeat_seconds)
    leases = ShardLeases(presence, heartbeat=interval, clock=time.monotonic)
    return LeasedRows(repository_of(route.service), leases, Heartbeat(presence, interval=interval, renew=leases.renew))
