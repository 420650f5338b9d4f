"""The rows of leases: which worker has which shard, until when by the database's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Q, QuerySet

from outbox.fields import SHARD_COUNT, UtcNow, from_now
from outbox.models import ShardLease


@dataclass(frozen=True, slots=True)
class LeaseRows:
    """The leases of one service and role, in the database ``using``. ``owner`` is a worker's id."""

    service: str
    role: str
    using: str

    def held(self, owner: str) -> frozenset[int]:
        """Return the shards that are ``owner``'s, or were and nobody has taken yet."""
        return frozenset(self._of(owner).values_list("shard", flat=True))

    def renew(self, owner: str, *, ttl: timedelta) -> int:
        """Have what ``owner`` holds run out ``ttl`` from now; return how many shards that are."""
        return self._of(owner).update(expires_at=from_now(ttl))

    def give_back(self, owner: str, shards: Collection[int] | None = None) -> None:
        """Free ``shards`` of ``owner``'s, None for all of them."""
        given = self._of(owner) if shards is None else self._of(owner).filter(shard__in=shards)
        given.update(owner="", expires_at=UtcNow())

    def take(self, owner: str, count: int, *, ttl: timedelta) -> None:
        """Have ``owner`` lease up to ``count`` free shards."""
        missing = set(range(SHARD_COUNT)) - set(self._all.values_list("shard", flat=True))
        if missing:
            rows = [ShardLease(service=self.service, role=self.role, shard=shard) for shard in sorted(missing)]
            ShardLease.objects.using(self.using).bulk_create(rows, ignore_conflicts=True)
        is_free = Q(owner="") | Q(expires_at__lte=UtcNow())
        free = list(self._all.filter(is_free).order_by("shard").values_list("shard", flat=True)[:count])
        if free:
            # The condition again: another worker may have taken one in between.
            self._all.filter(is_free, shard__in=free).update(owner=owner, expires_at=from_now(ttl))

    def count_by_owner(self) -> Counter[str]:
        """Return how many shards each worker leases now."""
        return Counter(self._all.filter(expires_at__gt=UtcNow()).values_list("owner", flat=True))

    def _of(self, owner: str) -> QuerySet[ShardLease]:
        return self._all.filter(owner=owner)

    @property
    def _all(self) -> QuerySet[ShardLease]:
        return ShardLease.objects.using(self.using).filter(service=self.service, role=self.role)
