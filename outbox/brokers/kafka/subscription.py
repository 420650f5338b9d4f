"""One member of a consumer group: a thread of its own polls, so that the caller may take all the time it needs.

The thread keeps the membership, reads ahead within bounds, and begins afresh when the client is beyond help.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from kafka.errors import KafkaError

from outbox.brokers.base import IncomingRecord
from outbox.brokers.kafka.client import ClientFactory, describe
from outbox.brokers.kafka.commits import OffsetCommits
from outbox.brokers.kafka.group import GroupMember
from outbox.brokers.kafka.ledger import Ledger
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError, ConfigurationError, LostSubscriptionError
from outbox.log_text import get_logger

logger = get_logger(__name__)

_FULL_PAUSE_S: Final = 0.1
_PROBE_AFTER_S: Final = 2.0
_PROBE_TIMEOUT_S: Final = 2.0
_RETRY_PAUSE_S: Final = 1.0
_BEGIN_AFRESH_AFTER_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 8.0
"""What a member may take to leave and to end its thread, and some."""


class KafkaSubscription:
    """A ``Subscription``."""

    def __init__(self, clients: ClientFactory, route: ServiceRoute, *, client_id: str) -> None:
        options = clients.options
        self._clients = clients
        self._route = route
        self._client_id = client_id
        self._commit_timeout_s = options.request_timeout_seconds
        self._revoke_timeout_s = options.revoke_timeout_seconds
        self._ledger = Ledger(max_records=options.prefetch_records, max_bytes=options.prefetch_bytes)
        self._changed = threading.Condition()
        """Guards everything below that both threads use, and the ledger."""
        self._closing = False
        self._outage = ""
        self._away_since: float | None = None
        self._heard_at = time.monotonic()
        self._commits = OffsetCommits(
            clients, route.group, ledger=self._ledger, changed=self._changed, member=lambda: self._member
        )
        self._member: GroupMember | None = self._connect()
        self._thread = threading.Thread(target=self._run, name=f"outbox-kafka-poll-{client_id}", daemon=True)
        self._thread.start()

    # --- the caller's side ---------------------------------------------------------------------------------------

    @property
    def assignments(self) -> Mapping[int, int]:
        with self._changed:
            return self._ledger.assignments

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        with self._changed:
            self._changed.wait_for(lambda: self._ledger.ahead or self._outage or self._is_over, timeout.total_seconds())
            records = self._ledger.take(max_records)
            if records:
                self._changed.notify_all()
            elif self._is_over:
                raise LostSubscriptionError(f"the subscription of {self._route.group!r} has ended; subscribe again")
            elif self._outage:
                raise BrokerUnavailableError(self._outage)
            return records

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        with self._changed:
            self._ledger.mark_done(records)
        self._commits.commit(timeout_s=self._commit_timeout_s)

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        with self._changed:
            self._ledger.hand_back(records)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_TIMEOUT_S + self._commit_timeout_s)
        if self._thread.is_alive():
            logger.warning(
                "Kafka subscription not closed: its thread goes on group=%s thread=%s",
                self._route.group,
                self._thread.name,
            )

    @property
    def _is_over(self) -> bool:
        return self._closing or not self._thread.is_alive()

    # --- the poll thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    self._turn()
                except (BrokerUnavailableError, ConfigurationError) as error:
                    self._note_outage(str(error))
                except Exception as error:
                    # Whatever it is: the caller hears of it, and we begin afresh.
                    logger.warning(
                        "Kafka group %s: the client failed and is made anew: %s",
                        self._route.group,
                        describe(error),
                        exc_info=not isinstance(error, KafkaError),
                    )
                    self._note_outage(str(self._clients.unavailable("cannot poll", error)))
                    self._disconnect()
        finally:
            self._disconnect()
            with self._changed:
                self._changed.notify_all()

    def _turn(self) -> None:
        member = self._member or self._reconnect()
        if self._is_away_for_too_long:
            self._disconnect()
            return
        if not member.join():
            self._break_silence(member)
            return
        with self._changed:
            room, room_bytes = self._ledger.room, self._ledger.room_bytes
        if room:
            self._read_ahead(member, room, room_bytes)
        else:
            self._stand_by(member)
        if self._outage:
            return
        self._commits.make_up()
        self._commits.commit_positions(member)

    def _read_ahead(self, member: GroupMember, room: int, room_bytes: int) -> None:
        found = member.read(min(room, 500), max_bytes=room_bytes)
        if found:
            self._hear()
            with self._changed:
                self._add(found)
                self._changed.notify_all()
        else:
            self._break_silence(member)

    def _stand_by(self, member: GroupMember) -> None:
        """Keep the membership without reading on, until the caller has made room."""
        found = member.stand_by()
        with self._changed:
            self._add(found)
            self._changed.wait_for(lambda: self._ledger.room or self._closing, _FULL_PAUSE_S)

    def _add(self, found: Mapping[int, Sequence[IncomingRecord]]) -> None:
        for partition, records in found.items():
            self._ledger.add(partition, records)

    def _break_silence(self, member: GroupMember) -> None:
        """Find out whether a silence is one of the topic or one of the brokers: ``poll`` hides the difference."""
        if time.monotonic() - self._heard_at < (_RETRY_PAUSE_S if self._outage else _PROBE_AFTER_S):
            return
        try:
            member.check_reachable(timeout_s=_PROBE_TIMEOUT_S)
        except KafkaError as error:
            reason: BaseException | str = "not authorized" if member.is_unauthorized else error
            self._note_outage(str(self._clients.unavailable(f"cannot read topic {self._route.topic!r}", reason)))
            self._heard_at = time.monotonic()
        else:
            self._hear()

    def _hear(self) -> None:
        self._heard_at = time.monotonic()
        if self._outage:
            with self._changed:
                self._outage = ""
                self._away_since = None

    def _note_outage(self, reason: str) -> None:
        with self._changed:
            self._outage = reason
            if self._away_since is None:
                self._away_since = time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing, _RETRY_PAUSE_S)

    @property
    def _is_away_for_too_long(self) -> bool:
        return self._away_since is not None and time.monotonic() - self._away_since > _BEGIN_AFRESH_AFTER_S

    # --- the client ----------------------------------------------------------------------------------------------

    def _connect(self) -> GroupMember:
        return GroupMember(self._clients, self._route, client_id=self._client_id, owner=self)

    def _reconnect(self) -> GroupMember:
        member = self._connect()
        with self._changed:
            self._member = member
            self._away_since = None if not self._outage else time.monotonic()
        return member

    def _disconnect(self) -> None:
        """Leave the group; what was read ahead or is in the caller's hands belongs to others then."""
        with self._changed:
            member, self._member = self._member, None
            self._ledger.end(self._ledger.partitions)
        if member is not None:
            member.close()

    # --- who owns what (called on the client's I/O thread) -------------------------------------------------------

    def begin(self, partitions: Iterable[int]) -> None:
        with self._changed:
            self._ledger.begin(partitions)

    def begin_leaving(self, partitions: Iterable[int]) -> None:
        with self._changed:
            self._ledger.begin_leaving(partitions)

    def awaits_commits(self, partitions: Iterable[int]) -> bool:
        with self._changed:
            return not self._closing and bool(self._ledger.in_hand(partitions))

    def end(self, partitions: Iterable[int]) -> None:
        with self._changed:
            in_hand = self._ledger.in_hand(partitions)
            self._ledger.end(partitions)
            self._changed.notify_all()
        if in_hand and not self._closing:
            logger.warning(
                "Kafka group %s: partitions %s move before their records are committed, those come again",
                self._route.group,
                in_hand,
            )

    @property
    def revoke_timeout_s(self) -> float:
        return self._revoke_timeout_s
