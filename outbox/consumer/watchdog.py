"""The time limit of a handler call: a thread of its own ends what takes too long.

It first ends the database connections of the late thread from connections of its own, which frees its locks and ends
its waits in the driver, and then raises an exception in it. A call that does not return even then ends the process.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from outbox.consumer.backstop import Backstop
from outbox.consumer.bounded import log_stack, run_bounded
from outbox.consumer.handler_threads import Call, Interrupt, Slot
from outbox.consumer.late_connections import throw_away
from outbox.exceptions import HandlerTimeoutError
from outbox.log_text import get_logger

A = TypeVar("A")
R = TypeVar("R")

logger = get_logger(__name__)

_STOOD_STILL_S: Final = 1.0
"""The watchdog wakes up later than this only where the process stood still (frozen, its host suspended), or where a
handler keeps the interpreter's lock: that takes time of the processor, which is its own."""

HUNG_EXIT_CODE: Final = 79
"""Exit code of a process that was ended because a handler did not return."""
_END_SESSIONS_S: Final = 5.0
"""How long the interruption of a late call waits for the end of its database sessions."""
_AGAIN_S: Final = 2.0
"""How long an interruption may be without effect before it is sent once more."""


class Watchdog:
    """Calls handlers under a time limit; one a process, for any number of threads.

    Its thread starts with the first call and looks at the deadlines every ``tick``, so a call costs nothing but the
    note of its deadline, and a limit is kept to a tick. Late is what was interrupted, not what returned before a look.
    """

    def __init__(
        self,
        *,
        grace: timedelta,
        tick: timedelta = timedelta(seconds=0.25),
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[int], None] = os._exit,
        backstop: Backstop | None = None,
    ) -> None:
        self._grace_s = grace.total_seconds()
        self._tick_s = tick.total_seconds()
        self._clock = clock
        self._end_process = end_process
        self._backstop = backstop
        self._longest_s = 0.0
        self._local = threading.local()
        self._slots: weakref.WeakSet[Slot] = weakref.WeakSet()  # a thread that ended has taken its slot along
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def call(
        self,
        function: Callable[[A], R],
        argument: A,
        *,
        limit_s: float,
        using: str,
        name: str,
        on_hung: Callable[[], None] | None = None,
    ) -> R:
        """Call ``function(argument)`` on this thread, for ``limit_s`` at most.

        Within another call the earlier of both deadlines holds. Should it not return within the grace period after its
        interruption, ``on_hung`` (or that of the call around it) is called on another thread, and the process ends.

        :raises HandlerTimeoutError: it took longer, whatever it made of its interruption. Every database connection of
            this thread is closed then, and with it the transaction that it was called in.
        """
        try:
            slot: Slot = self._local.slot
        except AttributeError:
            slot = self._new_slot(using)
        if limit_s > self._longest_s:
            self._longest_s = limit_s
            self._arm()
        call = Call(slot, self._clock() + limit_s, limit_s, name, on_hung)
        caught: BaseException | None = None
        try:
            try:
                slot.work = call
                result = function(argument)
            finally:
                slot.end(call)
        except BaseException as error:
            try:
                slot.end_again(call)
            except Interrupt:
                slot.end_again(call)
            if call.late_since is None:
                raise
            caught = error
        else:
            if call.late_since is None:
                return result
        try:
            raise self._late(slot, call, caught)
        finally:
            del caught  # its traceback holds this frame

    def close(self) -> None:
        """End the thread; the next call starts another."""
        with self._mutex:
            thread, self._thread = self._thread, None
            self._local = threading.local()
            self._stop.set()
        connection_created.disconnect(self._opened)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._backstop is not None:
            self._backstop.disarm()

    def _new_slot(self, using: str) -> Slot:
        connections[using]  # so that it is among those that are open
        slot = Slot()
        with self._mutex:
            self._slots.add(slot)
            if self._thread is None:
                connection_created.connect(self._opened)
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._watch,
                    args=[self._stop, time.monotonic(), time.process_time()],
                    name="watchdog",
                    daemon=True,
                )
                self._thread.start()
            self._local.slot = slot
        return slot

    def _opened(self, *, connection: BaseDatabaseWrapper, **_: object) -> None:
        slot: Slot | None = getattr(self._local, "slot", None)
        if slot is not None:
            slot.opened(connection)

    def _late(self, slot: Slot, call: Call, caught: BaseException | None) -> HandlerTimeoutError:
        throw_away(slot.databases, depths=dict(zip(call.databases, call.depths, strict=True)))
        late = HandlerTimeoutError(
            call.name,
            limit=timedelta(seconds=call.limit_s),
            began=call.deadline - call.limit_s,
            over_s=self._clock() - call.deadline,
        )
        # Shows where the handler was. Not its cause: the error of a connection that was ended here is no outage.
        late.__context__ = caught
        return late

    def _watch(self, stop: threading.Event, looked_at: float, ran: float) -> None:
        while not stop.wait(self._tick_s):
            self._arm()
            # The process may stand still anywhere: what comes after these lines goes by their moment.
            before, looked_at = looked_at, time.monotonic()
            ran_before, ran = ran, time.process_time()
            now = self._clock()
            still_s = looked_at - before - self._tick_s - (ran - ran_before)
            self._look(now, stood_still_s=still_s if still_s > _STOOD_STILL_S else 0.0)

    def _arm(self) -> None:
        """See to it that the process ends should this thread not come here again."""
        if self._backstop is not None:
            # What a call may take; then what ``_interrupt`` and ``_give_up`` wait for, and what its return may take.
            self._backstop.arm(self._longest_s + 3 * self._grace_s)

    def _look(self, now: float, *, stood_still_s: float) -> None:
        with self._mutex:
            slots = list(self._slots)
        for slot in slots:
            if stood_still_s:
                slot.postpone(stood_still_s)
            try:
                self._act(slot, now)
            except Exception as error:  # noqa: BLE001 - the next slots are looked at whatever happens
                run_bounded([partial(logger.error, "watchdog failed", exc_info=error)], timeout_s=0.0)

    def _act(self, slot: Slot, now: float) -> None:
        """Interrupt the call at work, or end the process, where it is time to."""
        if not slot.mutex.acquire(blocking=False):
            return  # it is ending just now
        try:
            call = slot.work
            if call is None or now < call.deadline:
                return
            since = [each.late_since for each in call.and_outer() if each.late_since is not None]
            late_s = now - min(since, default=now)
            if late_s >= self._grace_s:
                self._give_up(slot, call)
            elif call.sent == 0:
                self._interrupt(slot, call)
            elif call.sent == 1 and late_s >= min(self._grace_s / 2, _AGAIN_S):
                slot.send_interruption(call)
        finally:
            slot.mutex.release()

    def _interrupt(self, slot: Slot, call: Call) -> None:
        log = partial(logger.warning, "handler is late, interrupting: %s, %g s", call.name, call.limit_s)
        run_bounded([log], timeout_s=0.0)
        ends = [session.end for session in slot.sessions if session.is_open]
        run_bounded(ends, timeout_s=min(self._grace_s, _END_SESSIONS_S))
        now = self._clock()
        for each in call.and_outer():  # those around it lose their connections as well
            if each.late_since is None and now >= each.deadline:
                each.late_since = now
        slot.send_interruption(call)

    def _give_up(self, slot: Slot, call: Call) -> None:
        """End the process while the slot's mutex is held, so that a handler that returns now goes no further."""
        if slot.gave_up:
            return
        slot.gave_up = True
        log = partial(log_stack, slot.ident, f"{call.name}, {call.limit_s:g} s")
        run_bounded([log, call.on_hung] if call.on_hung else [log], timeout_s=self._grace_s)
        self._end_process(HUNG_EXIT_CODE)
