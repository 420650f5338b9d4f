"""A process whose handler never returns: ``python -m tests.integration.hanging receive|lock|swallow|match``."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta


def receive(_: object) -> None:
    """Wait for an answer that never comes, without a timeout."""
    mine, _other = socket.socketpair()
    mine.recv(1)


def lock(_: object) -> None:
    """Wait for a lock that is never released."""
    never = threading.Lock()
    never.acquire()
    never.acquire()


def swallow(_: object) -> None:
    """Make nothing of the interruption."""
    while True:
        with suppress(BaseException):
            doze()


def match(_: object) -> None:
    """Backtrack until the end of days, and keep the interpreter's lock all the while."""
    re.match("(a+)+$", "a" * 64 + "b")


def doze() -> None:
    while True:
        time.sleep(0.01)


WAYS: dict[str, Callable[[object], None]] = {way.__name__: way for way in (receive, lock, swallow, match)}


def main(way: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from outbox.consumer.backstop import Backstop
    from outbox.consumer.watchdog import Watchdog

    watchdog = Watchdog(grace=timedelta(seconds=2), tick=timedelta(seconds=0.05), backstop=Backstop())
    watchdog.call(
        WAYS[way],
        None,
        limit_s=0.2,
        using="default",
        name="order.placed",
        on_hung=lambda: print("written down", flush=True),
    )
    print("returned", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
