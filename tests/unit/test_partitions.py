"""Partitions in a column of a worker's row: nothing that is held goes unnamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.coordination.partitions import decode_partitions, encode_partitions, names_partition, without_partitions

partitions = st.sets(st.integers(min_value=0, max_value=3000), max_size=60)
lengths = st.integers(min_value=9, max_value=60)


def _named(text: str) -> set[int]:
    return {each for first, last in decode_partitions(text) for each in range(first, last + 1)}


def test_neighbours_are_a_range() -> None:
    assert encode_partitions([7, 3, 0, 1, 2], max_length=20) == "0-3,7"
    assert encode_partitions([], max_length=20) == ""


@given(partitions)
def test_text_with_room_names_exactly_what_is_held(held: set[int]) -> None:
    text = encode_partitions(held, max_length=2000)

    assert _named(text) == held
    assert all(names_partition(decode_partitions(text), each) == (each in held) for each in range(0, 3001, 7))


@given(partitions, lengths)
def test_text_without_room_names_more_and_never_fewer(held: set[int], length: int) -> None:
    text = encode_partitions(held, max_length=length)

    assert len(text) <= length
    assert _named(text) >= held


@given(partitions, partitions, lengths)
def test_what_is_struck_leaves_all_others_named(held: set[int], gone: set[int], length: int) -> None:
    text = encode_partitions(held, max_length=2000)

    assert _named(without_partitions(text, gone, max_length=2000)) == held - gone
    cut = without_partitions(text, gone, max_length=length)
    assert len(cut) <= length
    assert _named(cut) >= held - gone


@pytest.mark.parametrize("text", ["", "x", ",", "-", "3-", "-3", "²"])
def test_text_of_others_harms_nothing(text: str) -> None:
    assert _named(text) <= {3}
