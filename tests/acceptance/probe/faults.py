"""What handlers of the probe service do wrong on purpose, beyond raising: each may happen in a real handler.

A fault that the library charges to its event happens at the first ``times`` attempts. One that ends the process or the
connection costs no attempt, so the trace counts how often it has happened.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from django.db import IntegrityError, connections, transaction

from outbox import Delivery
from tests.acceptance.probe import trace
from tests.acceptance.probe.models import BusinessRow, Effect
from tests.acceptance.probe.names import ELSEWHERE, HOOK_ERROR

LONGEST_HANG_S: Final = 20.0
"""A handler that nobody ends does so by itself, and the trace says that it overran."""

EXIT_CODE: Final = 7
Fault = Callable[[Delivery[Any], Effect], Any]
"""Saves the effect, or not; what it returns is what the handler returns."""


def _swallow_error(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    with suppress(IntegrityError):  # Django has marked the transaction for rollback
        Effect(pk=effect.pk).save(using=delivery.database, force_insert=True)


def _set_rollback(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    transaction.set_rollback(True, using=delivery.database)


def _roll_back(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    _execute(delivery, "ROLLBACK")


def _commit(delivery: Delivery[Any], effect: Effect) -> None:
    trace.note("commit", delivery.outbox_id, delivery.attempt)
    _execute(delivery, "COMMIT")
    effect.save(using=delivery.database)


def _return_coroutine(delivery: Delivery[Any], effect: Effect) -> Coroutine[Any, Any, None]:
    async def save() -> None:
        await effect.asave(using=delivery.database)

    return save()


def _hang_in_loop(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    end = time.monotonic() + LONGEST_HANG_S
    while time.monotonic() < end:
        pass
    _overran(delivery)


def _hang_in_sleeps(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    end = time.monotonic() + LONGEST_HANG_S
    while time.monotonic() < end:
        time.sleep(0.05)
    _overran(delivery)


def _hang_and_swallow(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    end = time.monotonic() + LONGEST_HANG_S
    while time.monotonic() < end:
        with suppress(BaseException):
            time.sleep(0.05)
    _overran(delivery)


def _hang_in_database(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    began = time.monotonic()
    _execute(delivery, f"SELECT SLEEP({LONGEST_HANG_S})")
    if time.monotonic() - began < LONGEST_HANG_S:
        raise RuntimeError("the database ended the sleep")
    _overran(delivery)


def _hang_in_socket(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(LONGEST_HANG_S), 0))
    with ours, theirs:
        try:
            ours.recv(1)
        except BlockingIOError:
            _overran(delivery)


def _exit(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    trace.note("kill", delivery.outbox_id, delivery.attempt)
    os._exit(EXIT_CODE)


def _kill(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    trace.note("kill", delivery.outbox_id, delivery.attempt)
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    trace.note("kill", delivery.outbox_id, delivery.attempt)
    ctypes.string_at(0)


def _match(delivery: Delivery[Any], effect: Effect) -> None:
    """Backtrack until the end of days, in one call that keeps the interpreter's lock: the kernel ends the process."""
    effect.save(using=delivery.database)
    trace.note("kill", delivery.outbox_id, delivery.attempt)
    re.match("(a+)+$", "a" * 64 + "b")


def _ask_elsewhere(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    with connections[ELSEWHERE].cursor() as cursor:
        cursor.execute("SELECT 1")


def _send_too_much(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)
    trace.note("large", delivery.outbox_id, delivery.attempt)
    with connections[delivery.database].cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        cursor.execute("SELECT LENGTH(%s)", ["x" * (cursor.fetchone()[0] + 1)])
    raise RuntimeError("the server took a statement that is too large for it")


def _raise_in_hook(delivery: Delivery[Any], effect: Effect) -> None:
    effect.save(using=delivery.database)

    def fail() -> None:
        raise RuntimeError(HOOK_ERROR)

    transaction.on_commit(fail, using=delivery.database)
    transaction.on_commit(lambda: trace.note("hook", delivery.outbox_id, delivery.attempt), using=delivery.database)


def _write_target(delivery: Delivery[Any], effect: Effect) -> None:
    """Write a row that a stranger may have locked."""
    target = BusinessRow.objects.using(delivery.database).filter(pk=delivery.payload.target)
    if not target.update(message_key=delivery.message_key):
        raise RuntimeError("the business row is not there")
    effect.save(using=delivery.database)


def _idle(delivery: Delivery[Any], effect: Effect) -> None:
    """Sleep with an open transaction, for less than the time limit."""
    effect.save(using=delivery.database)
    time.sleep(delivery.payload.sleep_ms / 1000)


BY_ATTEMPT: Final[dict[str, Fault]] = {
    "swallow-error": _swallow_error,
    "swallow-rollback": _set_rollback,
    "raw-rollback": _roll_back,
    "raw-commit": _commit,
    "coroutine": _return_coroutine,
    "hang-loop": _hang_in_loop,
    "hang-sleeps": _hang_in_sleeps,
    "hang-swallow": _hang_and_swallow,
    "hang-database": _hang_in_database,
    "hang-socket": _hang_in_socket,
    "elsewhere": _ask_elsewhere,
}
"""Charged to the event."""

BY_TRACE: Final[dict[str, tuple[str, Fault]]] = {
    "kill-exit": ("kill", _exit),
    "kill-signal": ("kill", _kill),
    "kill-crash": ("kill", _crash),
    "kill-match": ("kill", _match),
    "large-statement": ("large", _send_too_much),
}
"""Interruptions, each with what it writes into the trace."""

ALWAYS: Final[dict[str, Fault]] = {"hook": _raise_in_hook, "row-lock": _write_target, "idle": _idle}
"""No fault of the event's own: at every call."""


def misbehave(delivery: Delivery[Any], effect: Effect) -> Any:
    """Do what the event says; return what the handler is to return."""
    fault, times = delivery.payload.fault, delivery.payload.times
    if fault in BY_ATTEMPT and delivery.attempt <= times:
        return BY_ATTEMPT[fault](delivery, effect)
    if fault in BY_TRACE and _happened(BY_TRACE[fault][0], delivery) < times:
        return BY_TRACE[fault][1](delivery, effect)
    if fault in ALWAYS:
        return ALWAYS[fault](delivery, effect)
    effect.save(using=delivery.database)
    return None


def _happened(what: str, delivery: Delivery[Any]) -> int:
    marks = trace.read(Path(os.environ[trace.VARIABLE]))
    return sum(mark.what == what and mark.outbox_id == delivery.outbox_id for mark in marks)


def _overran(delivery: Delivery[Any]) -> None:
    trace.note("overran", delivery.outbox_id, delivery.attempt)
    raise RuntimeError("nobody ended a handler that hung")


def _execute(delivery: Delivery[Any], sql: str) -> None:
    with connections[delivery.database].cursor() as cursor:
        cursor.execute(sql)
