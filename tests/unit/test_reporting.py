"""Lengths of time as people write and read them."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.management.reporting import duration, share
from outbox.operations.durations import humanise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("36h", timedelta(hours=36)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1d 2h", timedelta(hours=26)),
        ("7D", timedelta(days=7)),
    ],
)
def test_duration_says_its_unit(text: str, expected: timedelta) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "7", "d", "7x", "-7d", "0d", "1.5h", "30m1h", "7d7d", "99999999w", "9" * 30 + "s"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="36h, 7d"):
        duration(text)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=900), "0s"),
        (timedelta(seconds=-5), "0s"),
        (timedelta(seconds=59), "59s"),
        (timedelta(seconds=192), "3m 12s"),
        (timedelta(hours=2), "2h"),
        (timedelta(hours=2, seconds=5), "2h"),
        (timedelta(days=9, hours=3, minutes=5), "9d 3h"),
        (timedelta(days=400), "400d"),
    ],
)
def test_humanised_length_has_two_units_at_the_most(length: timedelta, expected: str) -> None:
    assert humanise(length) == expected


@given(st.integers(min_value=1, max_value=10**8))
def test_humanised_length_can_be_read_again_and_loses_little(seconds: int) -> None:
    length = timedelta(seconds=seconds)
    again = duration(humanise(length))
    assert again <= length
    assert length - again < max(length / 20, timedelta(seconds=1))


@pytest.mark.parametrize("text", ["0", "-0.5", "1.01", "nan", "inf", "half", ""])
def test_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a share"):
        share(text)


@pytest.mark.parametrize(("text", "expected"), [("1", 1.0), ("0.01", 0.01), ("0.5", 0.5)])
def test_share_is_read(text: str, expected: float) -> None:
    assert share(text) == expected
