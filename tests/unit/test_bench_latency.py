"""The latency of `make bench`: each event of a transaction counts, by one clock."""

from __future__ import annotations

import pytest

from benchmarks.speed.latency import Committed, spent_ms

JOURNAL = "7\t2\t99.5\t100.0\n9\t1\t100.5\t101.0\n"


def test_each_event_of_a_transaction_counts() -> None:
    lines = [Committed.read(line) for line in JOURNAL.splitlines()]
    consumed = {7: 100.02, 8: 100.04, 9: 101.01, 10: 500.0}
    assert spent_ms(lines, consumed, offset_s=0.0) == pytest.approx([20.0, 40.0, 10.0])


def test_clock_that_is_ahead_is_set_back() -> None:
    assert spent_ms([Committed(1, 1, 9.0, 10.0)], {1: 12.5}, offset_s=2.0) == pytest.approx([500.0])


def test_event_that_is_not_there_is_an_error() -> None:
    """A row that was lost must not make the figures better."""
    with pytest.raises(KeyError):
        spent_ms([Committed(1, 2, 9.0, 10.0)], {1: 12.5}, offset_s=0.0)
