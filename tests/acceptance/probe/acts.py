"""What a misbehaving handler does, in real processes: nothing here is simulated."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from django.db import OperationalError, connections

from outbox import Delivery
from tests.acceptance.probe.brokers import hold
from tests.acceptance.probe.events import Misbehaving
from tests.acceptance.probe.models import BusinessRow
from tests.acceptance.probe.names import EXIT_CODE, WAITING, Act


def misbehave(delivery: Delivery[Misbehaving]) -> None:
    """Do what the payload says, where it says so of this attempt."""
    payload = delivery.payload
    if payload.row:
        rows = BusinessRow.objects.using(delivery.database).filter(pk=payload.row)
        rows.update(message_key=f"{payload.key} at {delivery.attempt}")
    if not payload.times or delivery.attempt <= payload.times:
        _ACTS[payload.act](delivery)


def _exit(_: Delivery[Any]) -> NoReturn:
    os._exit(EXIT_CODE)


def _kill(_: Delivery[Any]) -> None:
    """Do what the kernel does to a process that exhausts its memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault(_: Delivery[Any]) -> None:
    ctypes.string_at(0)


def _match(_: Delivery[Any]) -> None:
    """Backtrack until the end of days, in one call that keeps the interpreter's lock."""
    re.match("(a+)+$", "a" * 64 + "b")


def _swallow(_: Delivery[Any]) -> NoReturn:
    while True:
        with suppress(BaseException):
            time.sleep(0.01)


def _receive(_: Delivery[Any]) -> None:
    """Wait for an answer that never comes, in a call that no exception of Python's gets into."""
    here, there = socket.socketpair()
    with here, there:
        here.recv(1)


def _loop(_: Delivery[Any]) -> NoReturn:
    while True:
        pass


def _send_big_statement(delivery: Delivery[Any]) -> None:
    with connections[delivery.database].cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (longest,) = cursor.fetchone()
        cursor.execute("SELECT LENGTH(%s)", ["x" * (2 * longest)])  # by little more, and the server may still answer


def _lose_connection(delivery: Delivery[Any]) -> None:
    """Lose it as to an administrator, or to what ends long transactions: at the server."""
    connection = connections[delivery.database]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT PG_TERMINATE_BACKEND(PG_BACKEND_PID())")
        else:
            with suppress(OperationalError):  # MySQL calls this statement interrupted, the next one lost
                cursor.execute("KILL CONNECTION_ID()")
            cursor.execute("SELECT 1")


def _wait(_: Delivery[Any]) -> None:
    hold(WAITING)


def _do_nothing(_: Delivery[Any]) -> None:
    """Leave it at the business row."""


_ACTS: dict[Act, Callable[[Delivery[Any]], object]] = {
    "exit": _exit,
    "kill": _kill,
    "segfault": _segfault,
    "match": _match,
    "swallow": _swallow,
    "receive": _receive,
    "loop": _loop,
    "big_statement": _send_big_statement,
    "lose_connection": _lose_connection,
    "wait": _wait,
    "write_row": _do_nothing,
}
