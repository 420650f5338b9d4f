"""The loop of every worker: take a step; when it fails, classify the error, back off and go on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from outbox.coordination.connection_backoff import ConnectionBackoff, is_fault
from outbox.coordination.shutdown import StopFlag

_NO_PAUSE: Final = timedelta(0)


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one turn of the loop."""

    pause: timedelta = _NO_PAUSE
    """How long to wait before the next one."""
    failed: bool = False
    """The pause is a back-off, which nothing but the stop flag ends early."""
    is_last: bool = False


_GO_ON: Final = Turn()
_END: Final = Turn(is_last=True)


def _nothing(*_: Any) -> None:
    return


def _wait(pause: timedelta, stop: StopFlag) -> None:
    stop.wait(pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoop:
    """Runs the steps of one worker until it is asked to stop, or an end that was set is reached.

    An unavailable database or broker only makes it wait. So does a fault, an error of the library or of the schema,
    while the worker serves for ever: it goes on by itself once that is mended. Where an end is set, a person or a
    program waits for it, and the fault is raised.
    """

    step: Callable[[], bool]
    """Do the next piece of work; say whether there was any."""
    using: str
    """Alias of the database that the errors of ``step`` come from."""
    backoff: ConnectionBackoff
    pause: Callable[[bool], timedelta]
    """How long to rest after a step that succeeded, given whether it found work; zero: not at all."""
    rest: Callable[[timedelta, StopFlag], object] = _wait
    """Rest after a step that succeeded; ends early when asked to stop."""
    recover: Callable[[Exception], object] = _nothing
    """Put the worker in order after a step that failed; called before the back-off."""
    note_progress: Callable[[], object] = _nothing
    """Called before each step, for a heartbeat that tells a loop that moves from one that hangs."""
    unproven: Callable[[], Collection[str]] = tuple
    """What a step that succeeded has not shown to be available, by the names of ``ConnectionBackoff``."""
    is_complete: Callable[[], bool] | None = None
    """An end: asked before each step."""
    is_drained: Callable[[], bool] | None = None
    """An end: asked after a step without work, whether more will come. What it raises is treated like the step's."""

    @property
    def serves_for_ever(self) -> bool:
        """Say whether nothing but the stop flag ends the loop."""
        return self.is_complete is None and self.is_drained is None

    def run(self, stop: StopFlag) -> None:
        """Work until ``stop`` is set or an end is reached; a pause ends at once when asked to stop.

        :raises Exception: a fault, where an end is set.
        """
        while not stop.is_set:
            turn = self.turn()
            if turn.is_last:
                return
            if turn.pause > _NO_PAUSE:
                if turn.failed:
                    stop.wait(turn.pause)
                else:
                    self.rest(turn.pause, stop)

    def turn(self) -> Turn:
        """Take one step and see to its failure; without any pause.

        :raises Exception: a fault, where an end is set.
        """
        if self.is_complete is not None and self.is_complete():
            return _END
        self.note_progress()
        try:
            worked = self.step()
            is_last = not worked and self.is_drained is not None and self.is_drained()
        except Exception as error:
            if not self.serves_for_ever and is_fault(error, self.using):
                raise
            self.recover(error)
            return Turn(self.backoff.record(error, using=self.using), failed=True)
        self.backoff.record_success(besides=self.unproven())
        if is_last:
            return _END
        pause = self.pause(worked)
        return Turn(pause) if pause > _NO_PAUSE else _GO_ON
