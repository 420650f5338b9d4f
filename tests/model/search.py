"""Breadth first search of all states that a protocol can reach, with the shortest way to the first breach."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from outbox.lifecycle import TRANSITIONS, Status
from tests.model.protocol import Protocol
from tests.model.state import Kind, Row, State, Step

_LEGAL: Final = frozenset((source, each.target) for each in TRANSITIONS for source in each.sources) | {
    (None, Status.PENDING)
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: nothing broken, or a breach and the shortest way to it."""

    states: int
    steps: int
    breach: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        way = "".join(f"\n  {line}" for line in self.trace)
        return f"{self.states} states, {self.steps} steps: {self.breach or 'no breach'}{way}"


class Search:
    """All states reachable from the start of one protocol, and how each was first reached."""

    def __init__(self, protocol: Protocol, *, progress_by: Collection[Kind] = (Kind.SYSTEM,)) -> None:
        self._protocol = protocol
        self._progress_by = frozenset(progress_by)
        self._states: list[State] = [protocol.start]
        self._numbers: dict[State, int] = {protocol.start: 0}
        self._parents = array("l", [-1])
        self._labels: list[tuple[Any, ...]] = [("start",)]
        self._sources = array("l")
        self._targets = array("l")
        """The steps by which there is progress, as two columns of state numbers."""
        self._steps = 0

    def run(self) -> Found:
        """Search until something is broken or nothing is left; then look for states without a way to the end."""
        collects = gc.isenabled()
        gc.disable()  # states have no cycles, and looking for some takes longer than the search
        try:
            return self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> Found:
        at = 0
        while at < len(self._states):
            state = self._states[at]
            for step in self._protocol.steps(state):
                self._steps += 1
                after = self._protocol.normal(step.state)
                number = self._numbers.get(after)
                breach = step.breach or _illegal(state.rows, after.rows)
                if number is None:
                    number = self._add(after, at, step)
                    breach = breach or self._protocol.breach(after)
                if breach:
                    return self._found(breach, [*self._way(at), _line(step.label, after)])
                if step.kind in self._progress_by:
                    self._sources.append(at)
                    self._targets.append(number)
            at += 1
        stuck = self._first_stuck()
        if stuck is not None:
            return self._found("no way from here to an end of every event", self._way(stuck))
        return self._found("", [])

    def _add(self, state: State, parent: int, step: Step) -> int:
        number = len(self._states)
        self._numbers[state] = number
        self._states.append(state)
        self._parents.append(parent)
        self._labels.append(step.label)
        return number

    def _first_stuck(self) -> int | None:
        """Return the first state from which no steps of progress lead to the end of every event."""
        before: list[list[int]] = [[] for _ in self._states]
        for source, target in zip(self._sources, self._targets, strict=True):
            before[target].append(source)
        good = bytearray(len(self._states))
        todo = [number for number, state in enumerate(self._states) if self._protocol.is_done(state)]
        for number in todo:
            good[number] = 1
        while todo:
            for source in before[todo.pop()]:
                if not good[source]:
                    good[source] = 1
                    todo.append(source)
        at = good.find(0)
        return None if at < 0 else at

    def _way(self, number: int) -> list[str]:
        way = []
        while number > 0:
            way.append(_line(self._labels[number], self._states[number]))
            number = self._parents[number]
        return way[::-1]

    def _found(self, breach: str, trace: list[str]) -> Found:
        return Found(len(self._states), self._steps, breach, tuple(trace))


def _illegal(before: tuple[Row, ...], after: tuple[Row, ...]) -> str:
    if before is after:
        return ""
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.status is not new.status and (old.status, new.status) not in _LEGAL:
            return f"row {i} goes from {old.status} to {new.status}"
    return ""


def _line(label: tuple[Any, ...], state: State) -> str:
    rows = " ".join(_word(row) for row in state.rows)
    return f"{' '.join(map(str, label))}: {rows}; topic {list(map(list, state.topic))}"


def _word(row: Row) -> str:
    pause = "" if row.due else " (pause)"
    attempts = f" after {row.attempts}" if row.attempts else ""
    interruptions = f" interrupted {row.interruptions}" if row.interruptions else ""
    return f"{row.status or 'uncommitted'}{pause}{attempts}{interruptions}"
