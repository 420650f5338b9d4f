"""The offsets that a member of a consumer group owes, committed while its membership may be in flux.

Commits go from the caller's thread straight to the client's I/O thread, so they get through while the poll thread waits
in the middle of a rebalance for exactly them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from outbox.brokers.kafka.client import ClientFactory
from outbox.brokers.kafka.group import GroupMember
from outbox.brokers.kafka.ledger import Ledger
from outbox.exceptions import BrokerUnavailableError
from outbox.log_text import get_logger

logger = get_logger(__name__)

_COMMIT_PAUSE_S: Final = 0.05
_POSITIONS_EVERY_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
"""How long the poll thread waits for a commit of its own."""

_MEMBERSHIP_IN_FLUX: Final = (
    CommitFailedError,
    IllegalGenerationError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
"""The group is being put together anew; who owns what is known in a moment."""


class OffsetCommits:
    """Commits what ``ledger`` says is owed by ``group``. ``changed`` guards it, and is told of what is committed."""

    def __init__(
        self,
        clients: ClientFactory,
        group: str,
        *,
        ledger: Ledger,
        changed: threading.Condition,
        member: Callable[[], GroupMember | None],
    ) -> None:
        self._clients = clients
        self._group = group
        self._ledger = ledger
        self._changed = changed
        self._member = member
        self._has_failed = False
        self._asked_positions_at = 0.0

    def commit(self, *, timeout_s: float) -> None:
        """Commit what is owed, for the caller: where that fails, ``make_up`` sees to it.

        :raises BrokerUnavailableError: not within ``timeout_s``.
        """
        try:
            self._settle(time.monotonic() + timeout_s)
        except BrokerUnavailableError:
            with self._changed:
                self._has_failed = True
            raise

    def make_up(self) -> None:
        """Commit what the caller was told is not committed: it may have nothing more to commit after it."""
        if not self._has_failed:
            return
        try:
            self._settle(time.monotonic() + _TIMEOUT_S)
        except BrokerUnavailableError as error:
            logger.debug("Kafka group %s: a commit is still owed: %s", self._group, error)
        else:
            self._has_failed = False

    def commit_positions(self, member: GroupMember) -> None:
        """Commit where the client stands in partitions of which every record that it read is done and committed.

        Behind the last record there may be what is given to nobody, markers of transactions above all. Without this
        the group would never be at the end of such a partition.
        """
        if (now := time.monotonic()) - self._asked_positions_at < _POSITIONS_EVERY_S:
            return
        self._asked_positions_at = now
        with self._changed:
            settled = self._ledger.settled
        positions = member.positions(settled)
        with self._changed:
            passed = self._ledger.passed(positions, since=settled)
        if not passed:
            return
        try:
            member.commit(passed, timeout_s=_TIMEOUT_S)
        except (KafkaError, RuntimeError, OSError) as error:
            logger.debug("Kafka group %s: a position is not committed: %s", self._group, error)
        else:
            with self._changed:
                self._ledger.mark_committed(passed)

    def _settle(self, deadline: float) -> None:
        """Commit what is owed, as far as its partitions stay with this member.

        :raises BrokerUnavailableError: not by ``deadline``.
        """
        while True:
            with self._changed:
                owed = self._ledger.owed
                member = self._member()
            if not owed:
                return
            remaining_s = deadline - time.monotonic()
            error: BaseException | str = "the group did not settle in time"
            if remaining_s > 0 and member is not None:
                try:
                    member.commit(owed, timeout_s=remaining_s)
                except _MEMBERSHIP_IN_FLUX as flux:
                    error = flux
                except (KafkaError, RuntimeError, OSError) as failed:  # RuntimeError: closed under our hands
                    raise self._clients.unavailable("cannot commit", failed) from failed
                else:
                    with self._changed:
                        self._ledger.mark_committed(owed)
                        self._changed.notify_all()
                    return
            if time.monotonic() >= deadline:
                raise self._clients.unavailable("cannot commit", error)
            with self._changed:
                self._changed.wait(_COMMIT_PAUSE_S)
