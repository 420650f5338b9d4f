"""How a member of a Kafka group takes partitions over and hands them on: one by one, the rest goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

_LOOK_S: Final = 0.01


class Owner(Protocol):
    """Whose partitions they are. Called on the client's I/O thread: it must not wait."""

    @property
    def revoke_timeout_s(self) -> float: ...

    def begin(self, partitions: Iterable[int]) -> None:
        """Take ``partitions`` over."""

    def begin_leaving(self, partitions: Iterable[int]) -> None:
        """Hand out nothing more of ``partitions``."""

    def awaits_commits(self, partitions: Iterable[int]) -> bool:
        """Say whether records of ``partitions`` are in the caller's hands and not committed."""

    def end(self, partitions: Iterable[int]) -> None:
        """Let go of ``partitions``."""


class OwnedPartitionsAssignor(CooperativeStickyAssignor):  # type: ignore[misc]  # kafka-python has no types
    """The cooperative assignor, saying truly what this member owns.

    In kafka-python 3.0 it says what it was assigned last, also after the group has thrown it out. The leader then
    holds such a partition back for its supposed owner to revoke, which has nothing to revoke: nobody gets it until
    something else has the group put together anew.
    """

    consumer: Any = None

    def metadata(self, topics: Any) -> Any:
        self.member_assignment = sorted(self.consumer.assignment()) if self.consumer is not None else []
        return super().metadata(topics)


class RebalanceListener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Waits for the commits of a partition that moves, within a bound, while heartbeats and commits go on."""

    def __init__(self, owner: Owner, network: Any) -> None:
        self._owner = owner
        self._loop = network._net  # noqa: SLF001 - the only way to wait on the I/O thread without holding it up

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._owner.begin(_numbers(assigned))

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        partitions = _numbers(revoked)
        self._owner.begin_leaving(partitions)
        deadline = time.monotonic() + self._owner.revoke_timeout_s
        while self._owner.awaits_commits(partitions) and time.monotonic() < deadline:
            await self._loop.sleep(_LOOK_S)
        self._owner.end(partitions)

    async def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._owner.end(_numbers(lost))


def _numbers(partitions: Iterable[Any]) -> list[int]:
    return [each.partition for each in partitions]
