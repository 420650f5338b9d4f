"""The traceparent of the event in hand."""

from __future__ import annotations

import threading

import pytest

from outbox.tracing import current_traceparent, traceparent


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
