"""The traceparent of the event in hand."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from outbox.wire.tracing import TraceparentSource, current_traceparent, traceparent


def test_there_is_none_outside_a_handler() -> None:
    assert current_traceparent() == ""


def test_it_holds_inside_the_block_and_the_outer_one_comes_back() -> None:
    with traceparent("00-outer"):
        with traceparent("00-inner"):
            assert current_traceparent() == "00-inner"
        assert current_traceparent() == "00-outer"
    assert current_traceparent() == ""


def test_it_ends_with_a_handler_that_fails() -> None:
    with pytest.raises(LookupError), traceparent("00-aa"):
        raise LookupError
    assert current_traceparent() == ""


def test_threads_do_not_see_each_others() -> None:
    seen: list[str] = []
    with traceparent("00-aa"):
        thread = threading.Thread(target=lambda: seen.append(current_traceparent()))
        thread.start()
        thread.join(10)
    assert seen == [""]


# --- the project's own source ------------------------------------------------------------------------------------

said: list[Any] = []


def say() -> Any:
    """Stand for a project's function: return or raise what a test wrote down."""
    [value] = said
    if isinstance(value, BaseException):
        raise value
    return value


@pytest.mark.parametrize(
    ("value", "read", "logged"),
    [
        ("00-aa-bb-01", "00-aa-bb-01", ""),
        ("x" * 64, "x" * 64, ""),
        (None, "", ""),
        ("", "", ""),
        ("x" * 65, "", "it returned a str of 65 characters; it must be None or up to 64 plain characters"),
        ("x" * 1_000_000, "", "it returned a str of 1000000 characters"),
        ("00-ä", "", "it returned a str of 4 characters"),
        ("00-\x00", "", "plain characters"),
        ("00-\ud800", "", "plain characters"),
        ("a\nb", "", "plain characters"),
        (7, "", "it returned a int"),
        (b"00-aa", "", "it returned a bytes"),
        (LookupError("no trace"), "", "LookupError: no trace"),
        (RecursionError("deep"), "", "RecursionError: deep"),
    ],
)
def test_source_that_fails_gives_no_trace_and_no_error(
    value: Any, read: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    said[:] = [value]
    assert TraceparentSource(f"{__name__}.say", clock=lambda: 0.0).read() == read
    assert [logged in record.getMessage() for record in caplog.records] == ([True] if logged else [])


@pytest.mark.parametrize("path", ["tests.nowhere.say", f"{__name__}.nothing", "say", f"{__name__}.said"])
def test_source_that_is_not_there_gives_no_trace_and_no_error(path: str, caplog: pytest.LogCaptureFixture) -> None:
    assert TraceparentSource(path, clock=lambda: 0.0).read() == ""
    assert f"source={path}" in caplog.text


def test_failing_source_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    moments = iter((1000.0, 1000.1, 1059.9, 1060.0, 1061.0))
    said[:] = [LookupError("no trace")]
    source = TraceparentSource(f"{__name__}.say", clock=lambda: next(moments))
    assert [source.read() for _ in range(5)] == [""] * 5
    assert [record.getMessage().partition("failures=")[2].split()[0] for record in caplog.records] == ["1", "4"]
