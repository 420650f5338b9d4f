"""What the watchdog does last, when everything else may be out of order."""

from __future__ import annotations

import subprocess
import sys

from tests.services import CHECKOUT

TELL_WHERE_THREADS_ARE_WHILE_GARBAGE_IS_FOUND = """
import gc, threading
from outbox.consumer.bounded import log_stack
for _ in range(20):
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    garbage = [threading.local() for _ in range(100)]  # each asks for the interpreter's lock when it goes
    for each in garbage:
        each.itself = [each]
    gc.collect(0)
    del garbage, each
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 2, 2)
    log_stack(threading.get_ident(), "order.placed")
    gc.set_threshold(*thresholds)
    assert gc.isenabled()
    ended.set()
"""


def test_where_a_handler_hangs_is_told_whenever_garbage_is_searched_for() -> None:
    """In a process of its own: CPython 3.11 stands still with all its threads."""
    run = subprocess.run(
        [sys.executable, "-c", TELL_WHERE_THREADS_ARE_WHILE_GARBAGE_IS_FOUND],
        cwd=CHECKOUT,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 0, run.stderr.decode()
    assert run.stderr.count(b"ending the process: order.placed, at: ") == 20
