"""Paging over merged streams: forward and back, every row once, whatever the streams hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.admin.paging import Cut, Found, Gap, Page, Position, Slice, from_token, read_page, to_token
from outbox.admin.selection import outcome, read_selection, write_selection


class ListStream:
    """Rows (rank, id), newest first; gives up after ``window`` of them, and shows only those of ``wanted``."""

    def __init__(self, rows: Sequence[tuple[int, int]], *, window: int = 10**9, wanted: set[int] | None = None) -> None:
        self.rows = sorted(rows, reverse=True)
        self.window, self.wanted = window, wanted

    def read(self, gap: Gap | None, *, upward: bool, limit: int) -> Slice:
        keys = [row for row in self.rows if gap is None or self._is_beyond(row, gap, upward=upward)]
        keys = keys[::-1] if upward else keys
        looked_at = keys[: self.window]
        found = [_found(key) for key in looked_at if self.wanted is None or key[1] in self.wanted][:limit]
        is_cut = len(looked_at) == self.window and len(found) < limit
        return Slice(found, _found(looked_at[-1]) if is_cut else None)

    def _is_beyond(self, row: tuple[int, int], gap: Gap, *, upward: bool) -> bool:
        key = (int(gap.at.moment or 0), gap.at.id)
        if row == key:
            return gap.below == upward
        return (row > key) == upward


def _found(key: tuple[int, int]) -> Found:
    return Found(Position(str(key[0]), key[1]), key[0])


def forward(streams: Mapping[str, ListStream], limit: int) -> list[Page]:
    pages = [read_page(streams, cut={}, upward=False, limit=limit)]
    while pages[-1].has_older:
        pages.append(read_page(streams, cut=pages[-1].bottom, upward=False, limit=limit))
    return pages


def backward(streams: Mapping[str, ListStream], cut: Cut, limit: int) -> list[Page]:
    pages = [read_page(streams, cut=cut, upward=True, limit=limit)]
    while pages[-1].has_newer:
        pages.append(read_page(streams, cut=pages[-1].top, upward=True, limit=limit))
    return pages


row_lists = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=30, unique_by=lambda row: row[1])
stream_maps = st.dictionaries(st.sampled_from(["agent", "task", "memory"]), row_lists, min_size=1)


@given(stream_maps, st.integers(1, 7))
def test_each_row_is_met_once_forward_and_back(rows: dict[str, list[tuple[int, int]]], limit: int) -> None:
    streams = {name: ListStream(of_name) for name, of_name in rows.items()}
    everything = {(name, row_id) for name, of_name in rows.items() for _, row_id in of_name}
    ranks = {(name, row_id): rank for name, of_name in rows.items() for rank, row_id in of_name}

    pages = forward(streams, limit)
    seen = [row for page in pages for row in page.rows]
    assert sorted(seen) == sorted(everything)
    assert [ranks[row] for row in seen] == sorted(ranks.values(), reverse=True)
    assert all(len(page.rows) == limit for page in pages[:-1])

    if len(pages) > 1:
        back = backward(streams, pages[-1].top, limit)
        assert [row for page in back[::-1] for row in page.rows] == [row for page in pages[:-1] for row in page.rows]


@given(stream_maps, st.sets(st.integers(1, 60)), st.integers(1, 7), st.integers(1, 5))
def test_each_wanted_row_is_met_once_though_the_streams_give_up(
    rows: dict[str, list[tuple[int, int]]], wanted: set[int], limit: int, window: int
) -> None:
    streams = {name: ListStream(of_name, window=window, wanted=wanted) for name, of_name in rows.items()}
    expected = {(name, row_id) for name, of_name in rows.items() for _, row_id in of_name if row_id in wanted}
    ranks = {(name, row_id): rank for name, of_name in rows.items() for rank, row_id in of_name}

    pages = forward(streams, limit)
    seen = [row for page in pages for row in page.rows]
    assert sorted(seen) == sorted(expected)
    assert [ranks[row] for row in seen] == sorted((ranks[row] for row in expected), reverse=True)
    assert all(len(page.rows) == limit or page.stopped is not None for page in pages[:-1])


@given(row_lists, row_lists, st.integers(1, 5))
def test_rows_that_come_while_one_pages_change_nothing_below(
    old: list[tuple[int, int]], new: list[tuple[int, int]], limit: int
) -> None:
    first = read_page({"a": ListStream(old)}, cut={}, upward=False, limit=limit)
    later = ListStream([*old, *((rank + 10, row_id + 100) for rank, row_id in new)])
    second = read_page({"a": later}, cut=first.bottom, upward=False, limit=limit)
    if first.has_older:
        expected = [("a", row_id) for _, row_id in sorted(old, reverse=True)]
        assert [*first.rows, *second.rows] == expected[: len(first.rows) + len(second.rows)]


def test_above_the_first_rows_the_first_page_is_given_whole() -> None:
    streams = {"a": ListStream([(n, n) for n in range(1, 11)])}
    third = read_page(streams, cut={"a": Gap(Position("8", 8), below=True)}, upward=True, limit=5)
    assert [row_id for _, row_id in third.rows] == [10, 9, 8, 7, 6]
    assert not third.has_newer
    assert third.has_older


@given(
    st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.builds(
            Gap,
            st.builds(Position, st.none() | st.datetimes().map(str), st.integers(0, 2**63 - 1)),
            below=st.booleans(),
        ),
    )
)
def test_cut_comes_back_from_its_token(cut: Cut) -> None:
    assert from_token(to_token(cut), {"a": ListStream([]), "b": ListStream([])}) == cut


@pytest.mark.parametrize(
    "token",
    [
        "",
        "%",
        "é",
        "x" * 10_000,
        "bnVsbA",
        "e30x",
        to_token({"other": Gap(Position(None, 1), below=True)}),
        to_token({"a": Gap(Position("no time", 1), below=True)}),
        to_token({"a": Gap(Position(None, -1), below=True)}),
        to_token({"a": Gap(Position(None, 2**63), below=True)}),
    ],
)
def test_broken_token_is_the_top(token: str) -> None:
    assert from_token(token, {"a": ListStream([])}) == {}


def test_selection_comes_back_from_a_form() -> None:
    selection = {"agent": [3, 17], "active-scheduler": [1]}
    assert read_selection([write_selection(selection)]) == selection
    assert read_selection(["agent:17", "agent:3", "active-scheduler:1", "agent:17"]) == selection
    assert read_selection(["agent", "agent:x", "", "agent:-1", f"agent:{10**19}", "a b:1"]) == {}


def test_outcome_says_what_was_truly_done() -> None:
    words = {"verb": "replayed", "otherwise": "not dead any more"}
    assert outcome(3, 3, **words) == "3 were replayed."
    assert outcome(2, 3, **words) == "2 of 3 were replayed; 1 was not dead any more."
    assert outcome(1, 3, **words) == "1 of 3 was replayed; 2 were not dead any more."
