"""The heartbeat of a consumer: on a thread and a connection of its own, however long a handler takes.

That connection is also the witness of lost ones. Where the consumer's connection was lost and this one lived on, the
server was there all the time; where both were lost it was an outage, however soon a fresh one succeeds.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError, OperationalError

from outbox.backoff import RetryPolicy, delay
from outbox.leases import Presence, Switches
from outbox.models import WORKER_PARTITIONS_MAX_LENGTH
from outbox.partitions import encode_partitions
from outbox.sessions import worker_session
from outbox.sql import Trouble, trouble_of

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = timedelta(seconds=5)
_PAUSES: Final = RetryPolicy(base=timedelta(milliseconds=200), cap=timedelta(seconds=5), max_attempts=2**31, jitter=0.5)
_SQLITE_BUSY_MS: Final = 1000
"""Shorter than a worker's own: a beat that misses the writer's lock is made good by the next one."""
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


class NullHeartbeat:
    """No heartbeat, no row and no witness, for what works on one thread: ``switches`` are what is given."""

    def __init__(self, switches: Switches | None = None) -> None:
        self.switches = switches or Switches()

    def start(self) -> None:
        """Start nothing."""

    def hold(self, partitions: Collection[int]) -> None:
        """Name nothing."""

    def token(self) -> object | None:
        return None

    def lived_on(self, token: object | None) -> bool:  # noqa: ARG002 - there is none
        return False

    def close(self, *, deregister: bool = True) -> None:
        """Close nothing."""


class Heartbeat:
    """Renews a worker's row on a timer, names in it what the worker holds, and reads the service's switches.

    A beat that the database did not answer is made again with growing pauses. Nothing here waits for longer than
    ``answer_timeout``: a thread that is stuck with a silent server is given up for a new one. Used by one thread.
    """

    def __init__(self, presence: Presence, *, interval: timedelta, answer_timeout: timedelta = ANSWER_TIMEOUT) -> None:
        self.switches = Switches()
        self._presence = presence
        self._interval_s = interval.total_seconds()
        self._answer_timeout_s = answer_timeout.total_seconds()
        self._thread: _Thread | None = None
        self._stuck: list[_Thread] = []
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

    def close(self, *, deregister: bool = True) -> None:
        """End the thread, and take the row away; without the database the row runs out by itself."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        deadline = time.monotonic() + self._answer_timeout_s
        try:
            if deregister:
                thread.ask(self._presence.leave).result(self._answer_timeout_s)
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
            self._renew()
            raise _no_answer(self._presence.using) from None

    def _renew(self) -> None:
        """Start a thread, in place of one that is stuck; not without end, as each has a connection."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= _MOST_STUCK_THREADS:
            return
        if self._thread is not None:
            self._thread.end()
            self._stuck.append(self._thread)
        self._thread = _Thread(self._presence, interval_s=self._interval_s, tell=self._take)
        self._thread.start()

    def _take(self, thread: _Thread, switches: Switches) -> None:
        if thread is self._thread:
            self.switches = switches


class _Thread(threading.Thread):
    """Beats when it is due, and does what it is asked to in between."""

    def __init__(self, presence: Presence, *, interval_s: float, tell: Callable[[_Thread, Switches], None]) -> None:
        super().__init__(name=f"outbox-{presence.service}-heartbeat", daemon=True)
        self.token: object | None = None
        self._presence = presence
        self._using = presence.using
        self._interval_s = interval_s
        self._tell = tell
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ended = False
        self._failures = 0
        self._raw: Any = None
        self._next_at = time.monotonic() + interval_s

    # --- for other threads ---------------------------------------------------------------------------------------

    def ask(self, call: Callable[[], T]) -> Future[T]:
        """Have ``call`` done on this thread."""
        answer: Future[T] = Future()

        def work() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where it was asked
                answer.set_exception(error)

        self._asked.put(work)
        return answer

    def end(self) -> None:
        """Have the thread end after what it is doing."""
        self._ended = True
        self._asked.put(lambda: None)

    # --- on this thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        with worker_session(self._using, idle=None):
            try:
                while not self._ended:
                    self._turn()
            finally:
                self.token = None
                connections.close_all()

    def beat(self) -> None:
        """Renew the row; the next beat is an interval away, or a pause when this one failed."""
        try:
            self._prepare()
            switches = self._presence.beat()
        except BaseException as error:
            self._failures += 1
            self._note(error)
            self._next_at = time.monotonic() + delay(self._failures, _PAUSES, random.random()).total_seconds()  # noqa: S311
            raise
        self._next_at = time.monotonic() + self._interval_s
        if self._failures:
            logger.warning("heartbeat resumed: %s of %s", self._presence.role, self._presence.service)
            self._failures = 0
        self._answered()
        self._tell(self, switches)

    def is_open(self, token: object) -> bool:
        """Ask over the connection that ``token`` stands for, and over no other."""
        connection = connections[self._using]
        if token is not self.token or connection.connection is not self._raw:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except (DatabaseError, InterfaceError):
            self._disconnect()
            return False
        return True

    def _turn(self) -> None:
        try:
            asked = self._asked.get(timeout=max(0.0, self._next_at - time.monotonic()))
        except queue.Empty:
            asked = None
        if asked is not None:
            asked()
            return
        try:
            self.beat()
        except Exception:  # noqa: BLE001 - said already; the next beat may succeed
            return

    def _prepare(self) -> None:
        connection = connections[self._using]
        if connection.vendor == "sqlite" and connection.connection is None:
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_MS}")

    def _answered(self) -> None:
        """Remember the connection that has answered. SQLite's cannot be lost, and prove nothing."""
        connection = connections[self._using]
        if connection.vendor != "sqlite" and (self.token is None or connection.connection is not self._raw):
            self._raw, self.token = connection.connection, object()

    def _note(self, error: BaseException) -> None:
        """Say it once, and close the connection unless somebody else's lock was all that was in the way."""
        is_busy = trouble_of(error, self._using) is Trouble.CONTENTION
        if not is_busy:
            self._disconnect()
        if self._failures == 1:
            is_known = isinstance(error, (DatabaseError, InterfaceError))
            logger.log(
                logging.INFO if is_busy else logging.WARNING,
                "heartbeat failed, retrying: %s of %s: %s",
                self._presence.role,
                self._presence.service,
                error,
                exc_info=None if is_known else error,
            )

    def _disconnect(self) -> None:
        self.token = self._raw = None
        connections[self._using].close()


def _no_answer(using: str) -> OperationalError:
    """Return the error of a server that does not answer, which reads as a lost connection like those of drivers."""
    text = "the database did not answer the heartbeat in time"
    # https://dev.mysql.com/doc/mysql-errors/8.4/en/client-error-reference.html: CR_SERVER_LOST
    return OperationalError(2013, text) if connections[using].vendor == "mysql" else OperationalError(text)
