"""What an answer means, and how long to wait for the next attempt."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agent_events.notification.lifecycle import BURY, FAIL, MARK_SENT, SKIP
from agent_events.notification.policy import MAX_ATTEMPTS, Answer, NoAnswer, Outcome, Verdict, judge, next_step


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"{}",
        b'{"code": 0}',
        b'{"code": 0, "msg": "success"}',
        b'{"code": "0"}',
        b'{"code": 0.0}',
        b'{"code": null}',
        b"[1]",
        b'{"code": 1',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"data": {"code": 7}}',
    ],
)
def test_success_without_another_code_is_sent(body: bytes) -> None:
    assert judge(Answer(200, body)).outcome is Outcome.SENT


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_a_success(status: int) -> None:
    assert judge(Answer(status, b"")) == Verdict(Outcome.SENT, http_status=status)


@pytest.mark.parametrize("code", [b"1", b"-1", b"19001", b'"E1"', b"true", b"false", b"{}", b"[]", b'""'])
def test_success_with_another_code_is_hopeless(code: bytes) -> None:
    verdict = judge(Answer(200, b'{"code": ' + code + b', "msg": "no such flow"}'))
    assert (verdict.outcome, verdict.code, verdict.http_status) == (Outcome.HOPELESS, "refused", 200)
    assert "no such flow" in verdict.reason


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 410, 413, 422, 451])
def test_4xx_is_hopeless(status: int) -> None:
    verdict = judge(Answer(status, b""))
    assert (verdict.outcome, verdict.code, verdict.http_status) == (Outcome.HOPELESS, f"http_{status}", status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_hopeless(status: int) -> None:
    assert judge(Answer(status, b"")).outcome is Outcome.HOPELESS


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 599])
def test_overload_and_server_errors_are_tried_again(status: int) -> None:
    verdict = judge(Answer(status, b'{"code": 0}'))
    assert (verdict.outcome, verdict.code, verdict.http_status) == (Outcome.RETRY, f"http_{status}", status)


def test_no_answer_is_tried_again() -> None:
    verdict = judge(NoAnswer("timeout", "no answer within 5 s"))
    assert (verdict.outcome, verdict.code, verdict.reason) == (Outcome.RETRY, "timeout", "no answer within 5 s")


@pytest.mark.parametrize(("attempt", "minutes"), [(1, 5), (2, 10), (3, 20), (4, 30)])
def test_pauses_are_5_10_20_and_30_minutes(attempt: int, minutes: int) -> None:
    assert next_step(Verdict(Outcome.RETRY), attempt=attempt) == (FAIL, timedelta(minutes=minutes))


@pytest.mark.parametrize("attempt", [5, 6])
def test_fifth_failure_is_the_last(attempt: int) -> None:
    assert MAX_ATTEMPTS == 5
    assert next_step(Verdict(Outcome.RETRY), attempt=attempt) == (BURY, None)


@pytest.mark.parametrize("attempt", [1, 5])
def test_other_outcomes_are_final_at_any_attempt(attempt: int) -> None:
    assert next_step(Verdict(Outcome.SENT), attempt=attempt) == (MARK_SENT, None)
    assert next_step(Verdict(Outcome.HOPELESS), attempt=attempt) == (BURY, None)
    assert next_step(Verdict(Outcome.SKIPPED), attempt=attempt) == (SKIP, None)
