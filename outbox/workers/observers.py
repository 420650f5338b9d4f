"""A listener that logs what the workers of this process do: one line a service every ten seconds of work.

It shows how to listen: metrics of your own connect to ``outbox.signals`` in the same way. Relay and consumer only tell,
and know nothing of who listens.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from django.dispatch import Signal

from outbox import signals
from outbox.log_text import get_logger

logger = get_logger(__name__)

INTERVAL: Final = timedelta(seconds=10)

_COUNTED: Final[tuple[tuple[Signal, str], ...]] = (
    (signals.relayed, "published"),
    (signals.consumed, "consumed"),
    (signals.retried, "retried"),
    (signals.waited, "waited"),
    (signals.refused, "dead"),
    (signals.buried, "dead"),
    (signals.rejected, "rejected"),
    (signals.redelivered, "redelivered"),
)
"""Which signal counts as what; one without a ``count`` tells of one event."""


class ProgressLog:
    """Adds up what the signals tell, by service, between two lines in the log. Safe to share between threads.

    ``clock`` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}
        self._since = clock()

    def add(self, service: str, what: str, count: int) -> None:
        with self._lock:
            self._counts.setdefault(service, Counter())[what] += count

    def flush(self) -> None:
        """Log one line for each service that did something since the last time, and begin anew."""
        with self._lock:
            counts, self._counts = self._counts, {}
            now = self._clock()
            seconds, self._since = now - self._since, now
        for service, done in sorted(counts.items()):
            logger.info(
                "%s: in %.1f s published %d (%.1f/s), consumed %d (%.1f/s), retried %d, waited %d, dead %d, "
                "rejected %d, redelivered %d",
                service,
                seconds,
                done["published"],
                _rate(done["published"], seconds),
                done["consumed"],
                _rate(done["consumed"], seconds),
                done["retried"],
                done["waited"],
                done["dead"],
                done["rejected"],
                done["redelivered"],
            )


@contextmanager
def progress_log(*, interval: timedelta = INTERVAL, clock: Callable[[], float] = monotonic) -> Iterator[ProgressLog]:
    """Log what is done inside, every ``interval`` and at the end; a service that did nothing has no line."""
    log = ProgressLog(clock)
    ended = threading.Event()

    def log_now_and_then() -> None:
        while not ended.wait(interval.total_seconds()):
            log.flush()

    receivers = [(signal, _receiver(log, what)) for signal, what in _COUNTED]
    thread = threading.Thread(target=log_now_and_then, name="outbox-progress", daemon=True)
    for signal, receiver in receivers:
        signal.connect(receiver, weak=False)
    thread.start()
    try:
        yield log
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)
        ended.set()
        thread.join()
        log.flush()


def _receiver(log: ProgressLog, what: str) -> Callable[..., None]:
    def receive(sender: Any, *, count: int = 1, **_: Any) -> None:
        log.add(str(sender), what, count)

    return receive


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
