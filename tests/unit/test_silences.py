"""When a database was silent, told by the answers that a heartbeat had."""

from __future__ import annotations

import pytest

from outbox.coordination.silences import Silences


class Time:
    """A clock, and the time for which the process ran."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ran = 7.0

    def passes(self, seconds: float, *, busy: float = 0.0) -> None:
        self.now += seconds
        self.ran += seconds * busy


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def silences(time: Time) -> Silences:
    return Silences(lambda: time.now, lambda: time.ran)


def _answered(silences: Silences, time: Time, after_s: float, *, was_locked: bool = False) -> None:
    silences.asked()
    time.passes(after_s)
    silences.answered(was_locked=was_locked)


def test_answers_that_come_at_once_are_no_silence_however_rare_they_are(silences: Silences, time: Time) -> None:
    for _ in range(5):
        time.passes(60)
        _answered(silences, time, 0.9)

    assert silences.seconds(0.0) == 0.0


def test_silence_is_counted_from_the_answer_before_it(silences: Silences, time: Time) -> None:
    _answered(silences, time, 0.0)
    time.passes(2)
    _answered(silences, time, 5)
    time.passes(100)

    assert silences.seconds(0.0) == pytest.approx(7)
    assert silences.seconds(106.0) == pytest.approx(1), "the part since then"
    assert silences.seconds(107.5) == 0.0


def test_silence_that_goes_on_counts_until_now(silences: Silences, time: Time) -> None:
    _answered(silences, time, 0.0)
    time.passes(2)
    silences.asked()
    time.passes(1)
    assert silences.seconds(0.0) == 0.0
    time.passes(3)
    assert silences.seconds(0.0) == pytest.approx(6)


def test_question_whose_connection_was_lost_is_still_to_be_answered(silences: Silences, time: Time) -> None:
    _answered(silences, time, 0.0)
    for _ in range(4):
        silences.asked()
        time.passes(0.5)

    _answered(silences, time, 0.1)

    assert silences.seconds(0.0) == pytest.approx(2.1)
    _answered(silences, time, 0.1)
    assert silences.seconds(0.0) == pytest.approx(2.1)


def test_lock_of_somebody_else_is_no_silence(silences: Silences, time: Time) -> None:
    _answered(silences, time, 30, was_locked=True)

    assert silences.seconds(0.0) == 0.0


def test_process_that_is_at_work_itself_was_not_left_waiting(silences: Silences, time: Time) -> None:
    silences.asked()
    time.passes(10, busy=0.9)
    silences.answered()

    assert silences.seconds(0.0) == pytest.approx(1)


def test_old_silences_are_forgotten(silences: Silences, time: Time) -> None:
    for _ in range(1000):
        _answered(silences, time, 2)

    assert silences.seconds(0.0) == pytest.approx(2 * 256)
