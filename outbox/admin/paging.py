"""Keyset paging over one or many tables, newest first, without counting. Pure.

A page is bounded by two *cuts*. A cut says for every table (*stream*) between which two of its rows the page begins or
ends; a stream that a cut does not name is cut above its first row. Because a cut names rows and no numbers of rows,
paging forward and back meets every row once, also when the rows of several databases are merged and while rows are
added at the top.

A stream may give up after it looked at so many rows (see ``outbox.storage.index_scans``): the page then ends there,
short, and the next one goes on from that place.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from outbox.storage.positions import LATE, Found, Gap, Position, Slice

_TOKEN_MAX_LENGTH: Final = 8_000
_ID_LIMIT: Final = 2**63


Cut = Mapping[str, Gap]


class Stream(Protocol):
    """The rows of one table, in one order."""

    def read(self, gap: Gap | None, *, upward: bool, limit: int) -> Slice:
        """Return up to ``limit`` rows from ``gap`` on, downward (from the top when it is None) or upward."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, newest first, as (stream, id), and where they begin and end."""

    rows: Sequence[tuple[str, int]]
    top: Cut
    bottom: Cut
    has_newer: bool
    has_older: bool
    stopped: Any = None
    """The rank at which a stream gave up looking; None when the page is whole."""


@dataclass(slots=True)
class _Head:
    """The next row of a stream, or where it gave up."""

    name: str
    index: int
    rows: Iterator[Found]
    stop: Found | None
    row: Found | None = field(default=None)

    def advance(self) -> bool:
        """Go to the next row; say whether there is one, or a place where the stream gave up."""
        self.row = next(self.rows, None)
        return self.row is not None or self.stop is not None

    @property
    def order(self) -> tuple[Any, int]:
        at = self.row or self.stop
        return (at.rank if at else None, -self.index)


def read_page(streams: Mapping[str, Stream], *, cut: Cut, upward: bool, limit: int) -> Page:
    """Return the ``limit`` rows below ``cut``, or above it.

    Above the cut with fewer than ``limit`` rows is the top: the first page is given whole then.
    """
    heads = _open(streams, cut, upward=upward, limit=limit)
    pick = min if upward else max
    picked: list[tuple[str, int]] = []
    moved: dict[str, Gap] = {}
    stopped: Found | None = None
    while heads and len(picked) < limit:
        head = pick(heads, key=lambda one: one.order)
        if head.row is None:
            stopped = head.stop
            if stopped is not None:
                moved[head.name] = Gap(stopped.position, below=not upward)
            break
        picked.append((head.name, head.row.position.id))
        moved[head.name] = Gap(head.row.position, below=not upward)
        if not head.advance():
            heads.remove(head)
    goes_on = bool(heads)
    if upward and not goes_on:
        return read_page(streams, cut={}, upward=False, limit=limit)
    end = {**cut, **moved}
    return Page(
        rows=picked[::-1] if upward else picked,
        top=end if upward else cut,
        bottom=cut if upward else end,
        has_newer=goes_on if upward else bool(cut),
        has_older=True if upward else goes_on,
        stopped=stopped.rank if stopped else None,
    )


def _open(streams: Mapping[str, Stream], cut: Cut, *, upward: bool, limit: int) -> list[_Head]:
    heads = []
    for index, (name, stream) in enumerate(streams.items()):
        gap = cut.get(name)
        if upward and gap is None:
            continue  # cut above its first row: nothing is further up
        found = stream.read(gap, upward=upward, limit=limit + 1)
        head = _Head(name, index, iter(found.rows), found.stopped)
        if head.advance():
            heads.append(head)
    return heads


def to_token(cut: Cut) -> str:
    """Return ``cut`` as text for a URL."""
    plain = {name: (gap.at.moment, gap.at.id, gap.below) for name, gap in cut.items()}
    return base64.urlsafe_b64encode(msgspec.json.encode(plain)).decode().rstrip("=")


def from_token(token: str, streams: Mapping[str, Stream]) -> Cut:
    """Read a cut from a URL; what is no cut of ``streams`` is the top."""
    if not token or len(token) > _TOKEN_MAX_LENGTH:
        return {}
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        plain = msgspec.json.decode(raw, type=dict[str, tuple[str | None, int, bool]])
        gaps = {name: _gap(*parts) for name, parts in plain.items()}
    except (binascii.Error, ValueError, OverflowError, msgspec.MsgspecError):
        return {}
    return {name: gap for name, gap in gaps.items() if name in streams}


def _gap(moment: str | None, row_id: int, below: bool) -> Gap:
    if moment and moment != LATE:
        datetime.fromisoformat(moment).astimezone(UTC)  # near the ends of the calendar there is none
    if not 0 <= row_id < _ID_LIMIT:
        raise ValueError(row_id)
    return Gap(Position(moment, row_id), below)
