"""The heartbeat of a worker: on a thread and a connection of its own, however long a handler or the broker takes.

It says that the process lives, and when the worker's loop last moved. Its connection is also the witness of lost ones.
Where the consumer's connection was lost and this one lived on, the server was there all the time; where both were lost
it was an outage, however soon a fresh one succeeds. Where neither was lost, the answers to the beats tell of silences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final, Protocol, TypeVar

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError, OperationalError

from outbox.coordination.heartbeat_thread import BeatOutcomes, HeartbeatThread
from outbox.coordination.leases import Presence
from outbox.coordination.partitions import encode_partitions
from outbox.coordination.silences import Silences
from outbox.log_text import get_logger
from outbox.models import WORKER_PARTITIONS_MAX_LENGTH
from outbox.storage.pause_flags import Switches

logger = get_logger(__name__)

ANSWER_TIMEOUT: Final = timedelta(seconds=5)
_MOST_STUCK_THREADS: Final = 3

T = TypeVar("T")


class Witness(Protocol):
    """Says whether the server was there while a connection of somebody else was lost."""

    def token(self) -> object | None:
        """Return which connection of the witness is open, proven by its last answer; None: none is."""
        ...

    def lived_on(self, token: object | None) -> bool:
        """Say whether that very connection still answers."""
        ...

    def silent_s(self, since: float) -> float:
        """Return for how many seconds since then, by the monotonic clock, the server has left the witness waiting."""
        ...


class NullHeartbeat:
    """No heartbeat, no row and no witness, for what works on one thread: ``switches`` are what is given."""

    def __init__(self, switches: Switches | None = None) -> None:
        self.switches = switches or Switches()

    def start(self) -> None:
        """Start nothing."""

    def ensure_beaten(self) -> None:
        """Wait for nothing: the switches are what is given."""

    def moved(self) -> None:
        """Note nothing."""

    def hold(self, partitions: Collection[int]) -> None:
        """Name nothing."""

    def token(self) -> object | None:
        return None

    def lived_on(self, token: object | None) -> bool:  # noqa: ARG002 - there is none
        return False

    def silent_s(self, since: float) -> float:  # noqa: ARG002 - nobody waits
        return 0.0

    def close(self, *, deregister: bool = True) -> None:
        """Close nothing."""


class Heartbeat:
    """Renews a worker's row on a timer, names in it what the worker holds, and reads the service's switches.

    A beat that the database did not answer is made again with growing pauses. Nothing here waits for longer than
    ``answer_timeout``: a thread that is stuck with a silent server is given up for a new one. Used by one thread.
    ``renew`` renews with each beat what the worker leases.
    """

    def __init__(
        self,
        presence: Presence,
        *,
        interval: timedelta,
        answer_timeout: timedelta = ANSWER_TIMEOUT,
        renew: Callable[[], None] | None = None,
    ) -> None:
        self.switches = Switches()
        self._presence = presence
        self._renew_leases = renew
        self._interval_s = interval.total_seconds()
        self._answer_timeout_s = answer_timeout.total_seconds()
        self._outcomes = BeatOutcomes(f"{presence.role} of {presence.service}")
        self._silences = Silences()
        self._thread: HeartbeatThread | None = None
        self._stuck: list[HeartbeatThread] = []
        self._has_beaten = False
        self._written: str | None = None
        """The partitions that the row names for certain."""

    def start(self) -> None:
        """Start the thread and wait for the outcome of its first beat; without the database it goes on trying."""
        if self._thread is None:
            self._renew()
        try:
            self._beat()
        except (DatabaseError, InterfaceError):
            return  # said by the thread

    def ensure_beaten(self) -> None:
        """Beat, unless the database has answered a beat before: no step is taken before the switches are known.

        :raises DatabaseError: the database is unavailable.
        """
        if not self._has_beaten:
            self._beat()

    def hold(self, partitions: Collection[int]) -> None:
        """Name ``partitions`` in the row, from now on.

        :raises DatabaseError: the row may not name them yet; call it again.
        """
        text = encode_partitions(partitions, max_length=WORKER_PARTITIONS_MAX_LENGTH)
        self._presence.partitions = text
        if text != self._written:
            self._written = None
            self._beat()
            self._written = text

    def moved(self) -> None:
        """Note that the worker's loop goes on."""
        self._presence.progress.moved()

    def token(self) -> object | None:
        return self._thread.token if self._thread is not None else None

    def lived_on(self, token: object | None) -> bool:
        thread = self._thread
        if token is None or thread is None:
            return False
        try:
            return self._ask(lambda: thread.is_open(token))
        except (DatabaseError, InterfaceError):
            return False

    def silent_s(self, since: float) -> float:
        return self._silences.seconds(since)

    def close(self, *, deregister: bool = True) -> None:
        """End the thread, and take the row away; without the database the row runs out by itself."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        deadline = time.monotonic() + self._answer_timeout_s
        try:
            if deregister:
                thread.ask(thread.leave).result(self._answer_timeout_s)
        except (DatabaseError, InterfaceError, TimeoutError) as error:
            logger.warning(
                "cannot deregister, the worker's row runs out by itself: %s of %s: %s",
                self._presence.role,
                self._presence.service,
                error or "no answer",
            )
        finally:
            thread.end()
            thread.join(max(0.0, deadline - time.monotonic()))

    def _beat(self) -> None:
        thread = self._thread
        if thread is not None:
            self._ask(thread.beat)

    def _ask(self, call: Callable[[], T]) -> T:
        """Have the thread do ``call``; raise what it raised.

        :raises OperationalError: it had no answer in time; another thread takes the place of the one that waits.
        """
        if self._thread is None:
            raise RuntimeError("the heartbeat is not running")
        try:
            return self._thread.ask(call).result(self._answer_timeout_s)
        except TimeoutError:
            error = _no_answer(self._presence.using)
            self._outcomes.failed(error)
            self._renew()
            raise error from None

    def _renew(self) -> None:
        """Start a thread, in place of one that is stuck; not without end, as each has a connection."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= _MOST_STUCK_THREADS:
            return
        if self._thread is not None:
            self._thread.end()
            self._stuck.append(self._thread)
        self._thread = HeartbeatThread(
            self._presence,
            interval_s=self._interval_s,
            outcomes=self._outcomes,
            silences=self._silences,
            tell=self._take,
            renew=self._renew_leases,
        )
        self._thread.start()

    def _take(self, thread: HeartbeatThread, switches: Switches) -> None:
        if thread is self._thread:
            self.switches = switches
            self._has_beaten = True


def _no_answer(using: str) -> OperationalError:
    """Return the error of a server that does not answer, which reads as a lost connection like those of drivers."""
    text = "the database did not answer the heartbeat in time"
    # https://dev.mysql.com/doc/mysql-errors/8.4/en/client-error-reference.html: CR_SERVER_LOST
    return OperationalError(2013, text) if connections[using].vendor == "mysql" else OperationalError(text)
