"""How long to wait before the next attempt: a table, and what holds for every policy."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.declarations.backoff import RetryPolicy, delay

NO_JITTER = RetryPolicy(base=timedelta(seconds=1), cap=timedelta(minutes=10), jitter=0.0)


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (9, 256), (10, 512), (11, 600), (12, 600), (10_000, 600)],
)
def test_delay_doubles_up_to_the_cap(attempt: int, seconds: float) -> None:
    assert delay(attempt, NO_JITTER, rand=0.5) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("jitter", "rand", "seconds"),
    [(0.0, 0.9, 8.0), (0.2, 0.0, 8.0), (0.2, 0.5, 7.2), (1.0, 0.75, 2.0)],
)
def test_jitter_takes_its_share_off(jitter: float, rand: float, seconds: float) -> None:
    policy = RetryPolicy(base=timedelta(seconds=1), jitter=jitter)
    assert delay(4, policy, rand) == timedelta(seconds=seconds)


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="attempt counts from 1"):
        delay(attempt, NO_JITTER, 0.0)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("base must be positive", {"base": timedelta(0)}),
        ("cap must not be below base", {"base": timedelta(seconds=2), "cap": timedelta(seconds=1)}),
        ("max_attempts must be at least 1", {"max_attempts": 0}),
        ("jitter must be between 0 and 1", {"jitter": 1.1}),
        ("jitter must be between 0 and 1", {"jitter": -0.1}),
    ],
)
def test_impossible_policy_is_refused_with_its_fault(fault: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=fault):
        RetryPolicy(**options)  # type: ignore[arg-type]


seconds = st.floats(min_value=0.001, max_value=86_400)
policies = st.builds(
    lambda base, factor, jitter: RetryPolicy(
        base=timedelta(seconds=base), cap=timedelta(seconds=base * factor), jitter=jitter
    ),
    seconds,
    st.floats(min_value=1, max_value=1e6),
    st.floats(min_value=0, max_value=1),
)


@given(policies, st.integers(min_value=1, max_value=10**6), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_delay_lies_within_what_jitter_leaves(policy: RetryPolicy, attempt: int, rand: float) -> None:
    full = delay(attempt, policy, 0.0)
    rounding = timedelta(microseconds=1) + full * 1e-15  # of centuries, a float leaves a few microseconds out

    assert timedelta(0) <= delay(attempt, policy, rand) <= full <= policy.cap + rounding
    assert delay(attempt, policy, rand) >= full * (1 - policy.jitter) - rounding


@given(policies, st.integers(min_value=1, max_value=200))
def test_delay_never_shrinks_from_one_attempt_to_the_next(policy: RetryPolicy, attempt: int) -> None:
    assert delay(attempt, policy, 0.5) <= delay(attempt + 1, policy, 0.5)
