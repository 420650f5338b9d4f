"""The end of a process in which no Python code but a handler's runs any more: the kernel sees to it.

A handler may be in a call that keeps the interpreter's lock, such as a regular expression that backtracks for hours.
No thread of Python's gets to do anything then, the watchdog's included. What the process takes of the processor goes on
being counted, and a timer of the kernel's ends it by that; time in which the process is frozen does not count.
"""

from __future__ import annotations

import faulthandler
import signal
from contextlib import suppress
from typing import Final

from outbox.log_text import get_logger

logger = get_logger(__name__)

BACKSTOP_SIGNAL: Final = signal.SIGPROF
"""What a process dies of that was ended so. Before, the stacks of its threads are written to standard error."""


class Backstop:
    """Ends the process unless it is armed anew in time; one a process.

    ``is_usable`` is False where the timer has another use, such as a profiler: it is left alone then.
    """

    def __init__(self) -> None:
        is_free = signal.getsignal(BACKSTOP_SIGNAL) is signal.SIG_DFL and not any(signal.getitimer(signal.ITIMER_PROF))
        self.is_usable: Final = is_free
        if not is_free:
            logger.warning("SIGPROF has another use: a handler that keeps the interpreter's lock will not be ended")
            return
        with suppress(AttributeError, OSError, RuntimeError, ValueError):  # standard error is closed, or no file
            faulthandler.register(BACKSTOP_SIGNAL, all_threads=True, chain=True)

    def arm(self, seconds: float) -> None:
        """End the process when it has taken ``seconds`` more of the processor, on all its threads together."""
        if self.is_usable:
            signal.setitimer(signal.ITIMER_PROF, seconds)

    def disarm(self) -> None:
        """Forget what was armed."""
        if self.is_usable:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            faulthandler.unregister(BACKSTOP_SIGNAL)
