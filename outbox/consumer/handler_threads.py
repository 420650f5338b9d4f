"""The threads that call handlers, what each is at, and the exception that ends a call which is late.

What keeps the interruption out of all code but the handler's: it is sent under the slot's mutex, at most twice a call
(code that lets no exception out may lose the first), and only while that call is the slot's work. The end of a call
takes the mutex too, gives the slot's work back and takes back what was sent and not raised yet. What is raised within
that end itself has the end done again, twice at the most.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.consumer.late_connections import Session, session_of

_set_async_exc: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = [ctypes.c_ulong, ctypes.py_object]
_set_async_exc.restype = ctypes.c_int
_NOTHING: Final = ctypes.py_object()  # NULL: takes back what is pending


class Interrupt(BaseException):
    """Private to the consumer. Raised in the thread of a late handler; never escapes ``Watchdog.call``."""


class Call:
    """A call of a handler, and the one around it on the same thread."""

    __slots__ = ("databases", "deadline", "depths", "late_since", "limit_s", "name", "on_hung", "outer", "sent")

    def __init__(
        self, slot: Slot, deadline: float, limit_s: float, name: str, on_hung: Callable[[], None] | None
    ) -> None:
        outer = slot.work
        if outer is not None:
            on_hung = on_hung or outer.on_hung
            if outer.deadline < deadline:
                deadline, limit_s, name = outer.deadline, outer.limit_s, outer.name
        self.outer: Call | None = outer
        self.deadline: float = deadline
        self.limit_s: float = limit_s
        self.name: str = name
        self.on_hung: Callable[[], None] | None = on_hung
        self.databases = slot.databases
        self.depths = [len(each.atomic_blocks) for each in slot.databases]
        self.sent = 0
        self.late_since: float | None = None

    def and_outer(self) -> Iterator[Call]:
        """Return this call and those around it."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.outer


class Slot:
    """A thread that calls handlers, what it is at, and the databases that it has opened."""

    __slots__ = ("__weakref__", "databases", "gave_up", "ident", "mutex", "sessions", "work")

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.work: Call | None = None
        # Reentrant: an interruption between taking it and knowing so must not lock this thread out.
        self.mutex = threading.RLock()
        self.databases: list[BaseDatabaseWrapper] = []
        self.sessions: list[Session] = []
        self.gave_up = False
        for database in connections.all(initialized_only=True):
            self.opened(database)

    def send_interruption(self, call: Call) -> None:
        """Have it raised in this thread; the mutex is held."""
        call.sent += 1
        _set_async_exc(self.ident, Interrupt)

    def end(self, call: Call) -> None:
        """Make the call around ``call`` the one at work; from then on nothing is raised for ``call``."""
        with self.mutex:
            self.work = call.outer
            if call.sent:
                _set_async_exc(self.ident, _NOTHING)

    def end_again(self, call: Call) -> None:
        """Do what ``end`` does after it may have been interrupted anywhere, the mutex taken or not."""
        self.end(call)
        with suppress(RuntimeError):  # the mutex is not ours any more
            while True:
                self.mutex.release()

    def postpone(self, seconds: float) -> None:
        """Move the deadline of the call at work, and of those around it, by ``seconds``."""
        with self.mutex:
            for call in self.work.and_outer() if self.work is not None else ():
                call.deadline += seconds
                if call.late_since is not None:
                    call.late_since += seconds

    def opened(self, database: BaseDatabaseWrapper) -> None:
        """Remember a connection of this thread."""
        if database not in self.databases:
            self.databases = [*(each for each in self.databases if each.alias != database.alias), database]
        session = session_of(database)
        self.sessions = [each for each in (*self.sessions, session) if each is not None and each.is_open]
