"""Up to which moment everything published has been in the consumers' hands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox.brokers.base import Positions
from outbox.relay.watermark import DeliveryHorizon


def at(minute: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)


def positions(end: dict[int, int], committed: dict[int, int], first: dict[int, int] | None = None) -> Positions:
    return Positions(first=first or dict.fromkeys(end, 0), end=end, committed=committed)


def test_nothing_is_known_while_a_backlog_is_worked_off() -> None:
    horizon = DeliveryHorizon()

    assert horizon.update(at(0), positions({0: 10}, {0: 3})) is None
    assert horizon.update(at(1), positions({0: 20}, {0: 9})) is None


def test_empty_topic_has_been_in_hand_up_to_now() -> None:
    horizon = DeliveryHorizon()

    assert horizon.update(at(0), positions({0: 10, 1: 0}, {0: 10})) == at(0)
    assert horizon.update(at(1), positions({0: 12, 1: 1}, {0: 12, 1: 1})) == at(1)


def test_horizon_moves_to_the_moment_whose_end_has_been_passed() -> None:
    horizon = DeliveryHorizon()
    horizon.update(at(0), positions({0: 10, 1: 5}, {0: 3, 1: 5}))

    assert horizon.update(at(1), positions({0: 20, 1: 9}, {0: 9, 1: 9})) is None
    assert horizon.update(at(2), positions({0: 30, 1: 9}, {0: 10, 1: 9})) == at(0)
    assert horizon.update(at(3), positions({0: 40, 1: 9}, {0: 29, 1: 9})) == at(0)
    assert horizon.update(at(4), positions({0: 50, 1: 9}, {0: 30, 1: 9})) == at(2)


def test_consumer_that_is_down_for_a_night_does_not_move_the_horizon() -> None:
    horizon = DeliveryHorizon()
    horizon.update(at(0), positions({0: 10}, {0: 10}))

    assert {horizon.update(at(minute), positions({0: 10 + minute}, {0: 10})) for minute in range(1, 600)} == {at(0)}


def test_records_that_retention_took_count_as_passed() -> None:
    horizon = DeliveryHorizon()
    horizon.update(at(0), positions({0: 10}, {0: 3}))

    assert horizon.update(at(1), positions({0: 20}, {0: 3}, first={0: 15})) == at(0)


def test_group_that_never_committed_has_passed_nothing() -> None:
    horizon = DeliveryHorizon()

    assert horizon.update(at(0), positions({0: 10}, {})) is None
    assert horizon.update(at(1), positions({0: 10}, {})) is None


@pytest.mark.parametrize(
    ("end", "committed", "first", "lag"),
    [
        ({}, {}, {}, 0),
        ({0: 10, 1: 4}, {0: 7}, {0: 0, 1: 0}, 7),
        ({0: 10}, {0: 3}, {0: 8}, 2),
        ({0: 10}, {0: 12}, {0: 0}, 0),
        ({0: 10}, {}, {}, 10),
    ],
)
def test_lag_is_what_is_kept_and_not_committed(
    end: dict[int, int], committed: dict[int, int], first: dict[int, int], lag: int
) -> None:
    assert Positions(first=first, end=end, committed=committed).lag == lag
