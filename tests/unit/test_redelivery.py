"""Pauses before a row is sent again: as configured the first time, twice as long each time after that."""

from __future__ import annotations

from datetime import timedelta

import pytest

from outbox.relay.redelivery import LONGEST_PAUSE, pause_before_redelivery

FIVE = timedelta(minutes=5)
SECOND = timedelta(seconds=1)


def test_pauses_double_up_to_the_longest() -> None:
    waited, pauses = None, []
    for _ in range(6):
        waited = pause_before_redelivery(waited, first=FIVE)
        pauses.append(waited)

    assert pauses == [FIVE, 2 * FIVE, 4 * FIVE, 8 * FIVE, LONGEST_PAUSE, LONGEST_PAUSE]


@pytest.mark.parametrize("waited", [FIVE - SECOND, FIVE, FIVE + 30 * SECOND, FIVE * 1.3])
def test_rows_of_one_batch_share_a_pause(waited: timedelta) -> None:
    """The broker's answer takes its time, and relays look for stuck rows now and then only."""
    assert pause_before_redelivery(waited, first=FIVE) == 2 * FIVE


@pytest.mark.parametrize("waited", [timedelta(0), -SECOND])
def test_a_clock_that_went_back_counts_as_the_first_time(waited: timedelta) -> None:
    assert pause_before_redelivery(waited, first=FIVE) == FIVE


def test_configured_pause_is_never_made_shorter() -> None:
    day = timedelta(days=1)

    assert pause_before_redelivery(None, first=day) == day
    assert pause_before_redelivery(day, first=day) == day


@pytest.mark.parametrize("waited", [timedelta.max, timedelta(microseconds=1)])
def test_whatever_a_row_says_is_bounded(waited: timedelta) -> None:
    shortest = timedelta(microseconds=1)

    assert FIVE < pause_before_redelivery(waited, first=FIVE) <= LONGEST_PAUSE
    assert shortest < pause_before_redelivery(waited, first=shortest) <= LONGEST_PAUSE
