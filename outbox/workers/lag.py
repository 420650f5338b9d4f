"""How far the consumer groups are behind, asked without letting anybody wait for a broker that is away.

One thread at a time asks the broker, for all services. Who wants to know waits a moment for the answer; when that is
not enough there is the last one and its age, and the new one is found the next time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from outbox.conf import on_settings_reset, outbox_settings
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import OutboxError
from outbox.log_text import get_logger
from outbox.workers.build import open_broker

logger = get_logger(__name__)

PATIENCE: Final = timedelta(milliseconds=500)
FRESH_FOR: Final = timedelta(seconds=2)

Lags = Mapping[str, int | None]
"""Service -> records not committed; None where the broker keeps none."""


@dataclass(frozen=True, slots=True)
class LagReport:
    """The newest answer there is. ``age`` is None as long as there is none."""

    lags: Lags = field(default_factory=dict)
    problem: str = ""
    age: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    lags: Lags
    problem: str
    at_s: float


class LagProbe:
    """Asks ``read`` on a thread of its own. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        read: Callable[[Sequence[ServiceRoute]], Lags],
        *,
        patience: timedelta = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._answer: _Answer | None = None

    def report(self, routes: Sequence[ServiceRoute]) -> LagReport:
        """Return the newest answer, after waiting for a new one for a moment where it is not fresh."""
        answer = self._answer
        if answer is None or self._clock() - answer.at_s > FRESH_FOR.total_seconds():
            self._asking(routes).join(self._patience.total_seconds())
            answer = self._answer
        if answer is None:
            waited = f"{self._patience.total_seconds():g} s"
            return LagReport(problem=f"{broker_name()} has not answered within {waited}")
        return LagReport(answer.lags, answer.problem, timedelta(seconds=self._clock() - answer.at_s))

    def _asking(self, routes: Sequence[ServiceRoute]) -> threading.Thread:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._ask, args=(routes,), name="outbox-lag", daemon=True)
                self._thread.start()
            return self._thread

    def _ask(self, routes: Sequence[ServiceRoute]) -> None:
        try:
            lags, problem = self._read(routes), ""
        except OutboxError as error:
            lags, problem = {}, str(error)
        except Exception as error:
            logger.exception("the lag of the consumer groups could not be read")
            # An error that nobody foresaw may say anything, and pages are seen by more people than logs.
            lags, problem = {}, f"It could not be read: {type(error).__name__}. The log says more."
        self._answer = _Answer(lags, problem, self._clock())


def broker_name() -> str:
    """Return what a person calls the configured broker: the name of its backend, and its servers where it has some."""
    configured = outbox_settings().broker
    servers = configured.options.get("bootstrap_servers")
    name = configured.backend.capitalize() if "." not in configured.backend else configured.backend
    return f"{name} at {servers}" if servers else f"the {configured.backend} broker"


def read_lags(routes: Sequence[ServiceRoute]) -> Lags:
    """Ask the configured broker how far the group of each route is behind.

    :raises BrokerUnavailableError: it is away.
    """
    with open_broker() as broker:
        found = {route.service: broker.positions(route) for route in routes}
    return {service: None if positions is None else positions.lag for service, positions in found.items()}


class _ProcessProbe:
    """The probe that this process's pages share."""

    def __init__(self) -> None:
        self.current = LagProbe(read_lags)

    def renew(self) -> None:
        self.current = LagProbe(read_lags)


_process: Final = _ProcessProbe()
on_settings_reset(_process.renew)


def lag_report(routes: Sequence[ServiceRoute]) -> LagReport:
    """Return how far the groups of ``routes`` are behind."""
    return _process.current.report(routes)
