"""How long a share of the work stood still after its worker was killed, and how much of that was nobody's fault. Pure.

Moments are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

LIMIT_S: Final = 10.0
"""What the promise says."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work of one part of a share: a shard of a relay's, a partition of a consumer's."""

    part: int
    ready_at: float
    done_at: float
    what: str


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a share may stand still, or one moment from which on the time counts anew."""

    began_at: float
    ended_at: float
    why: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which nothing was in the way."""

    began_at: float
    ended_at: float
    waited_s: float
    """How much of it the machine or the handlers are to blame for."""

    @property
    def blamed_s(self) -> float:
        return self.ended_at - self.began_at - self.waited_s


@dataclass(frozen=True, slots=True)
class StandStill:
    """How long the part stood still that did so for longest."""

    piece: Piece
    """What was done first in it."""
    began_at: float
    stretch: Stretch
    """The one that is to blame most."""
    excuses: tuple[str, ...]

    @property
    def took_s(self) -> float:
        return self.piece.done_at - self.began_at

    @property
    def is_in_time(self) -> bool:
        return self.took_s <= LIMIT_S

    @property
    def is_too_long(self) -> bool:
        """Say whether it stood still for too long while nothing was in the way."""
        return not self.is_in_time and self.stretch.blamed_s > LIMIT_S


def stand_still(
    killed_at: float,
    parts: Collection[int],
    pieces: Iterable[Piece],
    spans: Collection[Span],
    waited_s: Callable[[float, float], float],
) -> StandStill | None:
    """Measure the longest stand-still of ``parts`` after ``killed_at``; None when there was nothing to do in them.

    ``waited_s`` says for how much of a time the machine or the handlers kept everybody waiting.
    """
    later: dict[int, list[Piece]] = {}
    for piece in pieces:
        if piece.part in parts and piece.done_at > killed_at:
            later.setdefault(piece.part, []).append(piece)
    found = [_first(killed_at, each) for each in later.values()]
    if not found:
        return None
    began_at, piece = max(found, key=lambda each: each[1].done_at - each[0])
    in_the_way = [span for span in spans if span.began_at < piece.done_at and span.ended_at > began_at]
    stretches = [
        Stretch(start, end, waited_s(start, end)) for start, end in between(began_at, piece.done_at, in_the_way)
    ]
    longest = max(stretches, key=lambda stretch: stretch.blamed_s, default=Stretch(began_at, began_at, 0.0))
    return StandStill(piece, began_at, longest, tuple(sorted({span.why for span in in_the_way})))


def absent(presence: Iterable[tuple[float, float]], *, since: float, until: float, why: str) -> Iterator[Span]:
    """Return the times between ``since`` and ``until`` in which nobody was there."""
    at = since
    for came_at, left_at in sorted(presence):
        if came_at > at:
            yield Span(at, min(came_at, until), why)
        at = max(at, left_at)
        if at >= until:
            return
    yield Span(at, until, why)


def _first(killed_at: float, pieces: list[Piece]) -> tuple[float, Piece]:
    """Return since when there was work in a part, and what was done first."""
    piece = min(pieces, key=lambda piece: piece.done_at)
    since = max(killed_at, min(piece.ready_at for piece in pieces))
    return min(since, piece.done_at), piece


def between(began_at: float, ended_at: float, spans: Collection[Span]) -> Iterator[tuple[float, float]]:
    at = began_at
    for span in sorted(spans, key=lambda span: span.began_at):
        if span.began_at > at:
            yield at, span.began_at
        at = max(at, span.ended_at)
    if ended_at > at:
        yield at, ended_at
