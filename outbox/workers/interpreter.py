"""How the Python of a worker is set up: for a process whose threads wait for servers and that makes much at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SWITCH_INTERVAL_S: Final = 0.001
"""A thread that has its server's answer waits so long for the one that computes; Python's default is 5 ms, and each
batch has several answers. Shorter ones cost more than they bring (docs/performance.md)."""

_GC_THRESHOLD: Final = 10_000
"""A batch makes some thousand objects that live until its end, and no cycles: Python's 700 looked at them in vain."""


@contextmanager
def set_up_for_batches() -> Iterator[None]:
    """Set the interpreter up for a relay or a consumer; at the end it is as it was.

    It changes the whole process, so it is for commands, whose process is their own.
    """
    switch_interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    gc.collect()
    gc.freeze()  # what was imported stays to the end: no collection needs to walk through it
    gc.set_threshold(_GC_THRESHOLD, *thresholds[1:])
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
