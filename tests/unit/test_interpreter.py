"""The interpreter of a worker: set up while it works, and as before when it ends."""

from __future__ import annotations

import gc
import sys

import pytest

from outbox.workers.interpreter import set_up_for_batches


def state() -> tuple[float, tuple[int, int, int], int]:
    return sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()


def test_threads_take_turns_sooner_and_garbage_is_looked_for_later() -> None:
    before = state()
    with set_up_for_batches():
        interval, thresholds, frozen = state()
    assert interval < before[0]
    assert thresholds[0] > before[1][0]
    assert frozen > before[2]
    assert gc.isenabled()


def test_all_is_as_before_also_after_an_error() -> None:
    before = state()
    with pytest.raises(ValueError, match="at work"), set_up_for_batches():
        raise ValueError("at work")
    assert state() == before
