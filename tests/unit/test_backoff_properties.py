"""What holds for every retry policy and every attempt, beyond the examples beside it."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from outbox.declarations.backoff import RetryPolicy, delay
from tests.properties import bounded

MICROSECOND = timedelta(microseconds=1)
LONGEST_EXACT = timedelta(days=365 * 270)
"""Above this Python's own seconds are no longer exact to the microsecond."""

attempts = st.integers(1, 80) | st.integers(1, 10**30)
shares = st.floats(0, 1, exclude_max=True)
any_share = st.floats(0, 1)


@st.composite
def policies(draw: st.DrawFn, *, jitters: st.SearchStrategy[float] = any_share) -> RetryPolicy:
    base = draw(st.timedeltas(MICROSECOND, timedelta(days=400)) | st.sampled_from([MICROSECOND, timedelta(days=400)]))
    cap = draw(st.just(base) | st.timedeltas(base, LONGEST_EXACT) | st.just(LONGEST_EXACT))
    return RetryPolicy(base=base, cap=cap, jitter=draw(jitters))


@bounded(150)
@given(policies(), attempts, shares)
def test_pause_is_never_negative_and_never_above_the_cap(policy: RetryPolicy, attempt: int, rand: float) -> None:
    assert timedelta(0) <= delay(attempt, policy, rand) <= policy.cap


@bounded(120)
@given(policies(jitters=st.just(0.0)), st.integers(1, 200), shares)
def test_pause_without_jitter_is_what_whole_numbers_give(policy: RetryPolicy, attempt: int, rand: float) -> None:
    exact = min(Fraction(policy.cap // MICROSECOND), Fraction(policy.base // MICROSECOND) * 2 ** (attempt - 1))

    assert abs(Fraction(delay(attempt, policy, rand) // MICROSECOND) - exact) <= 1


@bounded(120)
@given(policies(jitters=st.just(0.0)), attempts, attempts, shares)
def test_pause_without_jitter_grows_from_any_attempt_to_any_later_one(
    policy: RetryPolicy, one: int, other: int, rand: float
) -> None:
    assert delay(min(one, other), policy, rand) <= delay(max(one, other), policy, rand)


@bounded(100)
@given(policies(jitters=st.just(0.0)), st.integers(70, 10**300))
def test_pause_of_a_huge_attempt_is_the_cap(policy: RetryPolicy, attempt: int) -> None:
    assert delay(attempt, policy, 0.0) == policy.cap


@bounded(120)
@given(policies(), attempts, shares, shares)
def test_more_of_the_random_share_never_makes_a_pause_longer(
    policy: RetryPolicy, attempt: int, one: float, other: float
) -> None:
    assert delay(attempt, policy, max(one, other)) <= delay(attempt, policy, min(one, other))
