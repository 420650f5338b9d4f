"""The thread behind a heartbeat, with a connection of its own."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Final, TypeVar

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox.coordination.connection_backoff import PAUSES
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.coordination.leases import Presence
from outbox.coordination.silences import Silences
from outbox.declarations.backoff import delay
from outbox.log_text import get_logger
from outbox.storage.pause_flags import Switches
from outbox.storage.sessions import bound_sqlite_wait, close_incomplete, ping, worker_session

logger = get_logger(__name__)

_SQLITE_WAIT: Final = timedelta(seconds=1)
"""Shorter than a worker's own: a beat that misses the writer's lock is made good by the next one."""

T = TypeVar("T")


class BeatOutcomes:
    """Counts failures in a row, and says the first of them and their end. ``whose``: the worker, for a person."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._failures = 0
        self._is_said = False

    def failed(self, error: BaseException, *, is_busy: bool = False) -> timedelta:
        """Note one more failure and return how long to pause."""
        self._failures += 1
        if self._failures == 1 or not (is_busy or self._is_said):
            self._is_said = not is_busy
            is_known = isinstance(error, (DatabaseError, InterfaceError))
            logger.log(
                logging.INFO if is_busy else logging.WARNING,
                "heartbeat failed, retrying: %s: %s",
                self._whose,
                error,
                exc_info=None if is_known else error,
            )
        return delay(self._failures, PAUSES, random.random())  # noqa: S311 - a pause is no secret

    def succeeded(self) -> None:
        """Note that the database has answered."""
        if self._failures:
            logger.info("heartbeat resumed: %s", self._whose)
            self._failures, self._is_said = 0, False


class HeartbeatThread(threading.Thread):
    """Beats when it is due, and does what it is asked to in between; once ended, what it still does is told nobody."""

    def __init__(
        self,
        presence: Presence,
        *,
        interval_s: float,
        outcomes: BeatOutcomes,
        silences: Silences,
        tell: Callable[[HeartbeatThread, Switches], None],
        renew: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name=f"outbox-{presence.service}-heartbeat", daemon=True)
        self.token: object | None = None
        self._presence = presence
        self._using = presence.using
        self._interval_s = interval_s
        self._outcomes = outcomes
        self._silences = silences
        self._tell = tell
        self._renew = renew
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ended = False
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
        self._silences.asked()
        try:
            self._prepare()
            switches = self._presence.beat()
            self._silences.answered()
            if self._renew is not None:
                self._renew()
        except BaseException as error:
            self._next_at = time.monotonic() + self._failed(error).total_seconds()
            raise
        self._next_at = time.monotonic() + self._interval_s
        self._answered()
        if not self._ended:
            self._outcomes.succeeded()
            self._tell(self, switches)

    def leave(self) -> None:
        """Take the row away; no beat comes after that, which would write it again."""
        self._ended = True
        self._presence.leave()

    def is_open(self, token: object) -> bool:
        """Ask over the connection that ``token`` stands for, and over no other."""
        connection = connections[self._using]
        if token is not self.token or connection.connection is not self._raw:
            return False
        try:
            ping(connection)
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
            bound_sqlite_wait(connection, _SQLITE_WAIT)

    def _answered(self) -> None:
        """Remember the connection that has answered. SQLite's cannot be lost, and prove nothing."""
        connection = connections[self._using]
        if connection.vendor != "sqlite" and (self.token is None or connection.connection is not self._raw):
            self._raw, self.token = connection.connection, object()

    def _failed(self, error: BaseException) -> timedelta:
        """Close the connection unless somebody else's lock was all that was in the way; return how long to pause."""
        kind = kind_of(error, self._using) if isinstance(error, (DatabaseError, InterfaceError)) else None
        is_busy = kind is ErrorKind.CONFLICT
        if kind not in (ErrorKind.DISCONNECTED, ErrorKind.UNAVAILABLE):
            self._silences.answered(was_locked=is_busy)
        if not is_busy:
            self._disconnect()
        close_incomplete(connections[self._using])
        return timedelta(0) if self._ended else self._outcomes.failed(error, is_busy=is_busy)

    def _disconnect(self) -> None:
        self.token = self._raw = None
        connections[self._using].close()
