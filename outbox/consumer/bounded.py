"""Steps that may hang, each on a thread of its own, waited for no longer than a given time."""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox.log_text import get_logger

logger = get_logger(__name__)


def run_bounded(steps: Iterable[Callable[[], object]], *, timeout_s: float) -> None:
    """Run ``steps`` side by side and wait for them together; what goes on after ``timeout_s`` is left to itself.

    Exceptions are logged, and connections that a step opened are closed. A step for which there is no thread is left
    out: whoever bounds a step has something to do after it that is worth more.
    """
    threads = [threading.Thread(target=_run, args=[step], name="bounded-step", daemon=True) for step in steps]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        with suppress(RuntimeError):  # there are too many, or the interpreter is ending
            thread.start()
    for thread in threads:
        if thread.ident is not None:  # it has started
            thread.join(max(0.0, deadline - time.monotonic()))


def _run(step: Callable[[], object]) -> None:
    try:
        step()
    except (DatabaseError, InterfaceError) as error:
        logger.warning("step of the watchdog failed, going on: %s", error)
    except Exception:
        logger.exception("step of the watchdog failed, going on")
    finally:
        connections.close_all()


def log_stack(ident: int, what: str) -> None:
    """Log where the thread ``ident`` is that does not return: the process is about to end because of ``what``."""
    frame = _frame_of(ident)
    # The innermost first: it says the most, and the end of a long line is cut.
    calls = reversed(traceback.extract_stack(frame)) if frame else ()
    stack = " < ".join(f"{each.filename}:{each.lineno} in {each.name}" for each in calls) or "unknown"
    logger.critical("handler does not return, ending the process: %s, at: %s", what, stack)


def _frame_of(ident: int) -> FrameType | None:
    """Return where the thread ``ident`` is, without a search for garbage meanwhile.

    CPython 3.11 keeps a lock of the interpreter while it collects the frames. Where that sets off a search that finds
    something which wants the same lock, such as a ``threading.local``, the process stands still for ever, with all of
    its threads (python/cpython issue 106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(ident)  # noqa: SLF001 - documented
    finally:
        if was_enabled:
            gc.enable()
