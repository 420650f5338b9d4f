"""A log line is one line, bounded, and can be written, whatever the text that it carries from outside."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from outbox import log_text
from outbox.log_text import OneLineFilter, get_logger, one_line
from tests.services import CHECKOUT

FORGED: Final = "2026-01-01 00:00:00 ERROR outbox.relay.loop row 7 is dead"
HUGE: Final = 5_000_000


class Stream(io.TextIOWrapper):
    """What a worker's standard error is: UTF-8, and strict."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="utf-8", errors="strict")

    @property
    def written(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Give a stream; a handler that fails at it fails the test, and does not print a traceback."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.StreamHandler, "handleError", _raise)
    return Stream()


def _raise(_: object, record: logging.LogRecord) -> None:
    raise AssertionError(f"{record.msg!r} could not be written")


@pytest.fixture
def logger(stream: Stream) -> Iterator[logging.Logger]:
    made = get_logger("outbox.test_log_text")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("{asctime} {levelname} {name} {message}", style="{"))
    made.addHandler(handler)
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    made.removeHandler(handler)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize(
    "text",
    [
        f"first\n{FORGED}",
        f"first\r\n{FORGED}",
        f"first\u2028{FORGED}",
        f"first\x85{FORGED}\x1e{FORGED}",
        "a\x1b[2J\x07\x00b",
        "half \ud800 of a character",
        "turned \u202e round",
        "x" * HUGE,
        "\n" * HUGE,
        "\x00" * HUGE,
        "\U0010ffff" * HUGE,
    ],
    ids=lambda text: ascii(text[:12]),
)
@pytest.mark.parametrize("as_what", ["text", "error", "field", "whole"])
def test_text_from_outside_is_one_bounded_line(logger: logging.Logger, stream: Stream, text: str, as_what: str) -> None:
    if as_what == "text":
        logger.warning("row %s (%s) failed: %s", 7, "toy.note", text)
    elif as_what == "error":
        logger.warning("row %s (%s) failed: %s", 7, "toy.note", ValueError(text))
    elif as_what == "field":
        logger.warning("row %(id)d failed: %(error)r", {"id": 7, "error": text})
    else:
        logger.warning(text)
    written = stream.written
    assert written.endswith("\n")
    assert written[:-1].isprintable(), "one line, without control characters"
    assert len(written) < 2 * log_text.TEXT_MAX_LENGTH + 200
    assert as_what == "whole" or "row 7" in written
    assert len(text) < HUGE or as_what in {"field"} or f"({len(text):,} characters)" in written


def test_text_that_is_in_order_stays_as_it_is(logger: logging.Logger, stream: Stream) -> None:
    logger.warning("%s of %d in %.1f s: %r, %s", "größer 测试 🙂", 3, 0.25, "x", None)
    assert stream.written.endswith(" WARNING outbox.test_log_text größer 测试 🙂 of 3 in 0.2 s: 'x', None\n")


def test_error_that_cannot_say_its_text_is_logged_all_the_same(logger: logging.Logger, stream: Stream) -> None:
    logger.error("failed: %s", UnspeakableError())
    assert "UnspeakableError whose text cannot be read: LookupError" in stream.written


def test_constant_text_of_a_record_stays_for_grouping(logger: logging.Logger) -> None:
    kept: list[Any] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append((record.msg, record.getMessage()))

    handler = Keeping()
    logger.addHandler(handler)
    logger.warning("row %s failed: %s", 7, "a\nb")
    logger.removeHandler(handler)
    assert kept == [("row %s failed: %s", "row 7 failed: a b")]


def failing(text: str) -> Exception:
    try:
        try:
            raise LookupError(text)
        except LookupError as error:
            raise ValueError(text) from error
    except ValueError as error:
        error.add_note(text)
        return error


@pytest.mark.parametrize("text", [f"boom\n{FORGED}", "\ud800\x1b[2J", "x" * HUGE, "x\n" * (HUGE // 2)], ids=range(4))
def test_traceback_is_bounded_and_none_of_its_lines_is_a_log_line(
    logger: logging.Logger, stream: Stream, text: str
) -> None:
    error = failing(text)
    logger.error("failed: %s", error, exc_info=error)
    first, *rest = stream.written.splitlines()
    assert "ERROR outbox.test_log_text failed: " in first
    assert "  Traceback (most recent call last):" in rest
    assert len(rest) <= log_text.TRACEBACK_MAX_LINES + 1
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
    assert max(map(len, rest)) < log_text.TEXT_MAX_LENGTH + 100
    assert FORGED not in rest


def test_traceback_of_an_error_that_cannot_be_described_is_written(logger: logging.Logger, stream: Stream) -> None:
    error = UnspeakableError()
    logger.error("failed", exc_info=error)
    assert "UnspeakableError" in stream.written


def test_record_passes_two_filters_as_one(logger: logging.Logger, stream: Stream) -> None:
    handler = logger.handlers[0]
    handler.addFilter(OneLineFilter())
    logger.error("failed: %s", "a\nb", exc_info=failing("c"))
    first, *rest = stream.written.splitlines()
    assert first.endswith("failed: a b")
    assert "  Traceback (most recent call last):" in rest


def test_filter_of_a_handler_bounds_the_lines_of_any_logger(stream: Stream) -> None:
    """As the project's settings have it: Django's and the Kafka client's lines go through it too."""
    from django.conf import settings

    configured: Any = settings.LOGGING
    assert configured["handlers"]["stderr"]["filters"] == ["one_line"]
    assert configured["filters"]["one_line"] == {"()": "outbox.log_text.OneLineFilter"}
    handler = logging.StreamHandler(stream)
    handler.addFilter(OneLineFilter())
    stranger = logging.getLogger("kafka.test_log_text")
    stranger.addHandler(handler)
    stranger.propagate = False
    stranger.setLevel(logging.ERROR)
    stranger.error("Handshake failed: \n%s" % ("x" * HUGE))
    stranger.removeHandler(handler)
    assert stream.written.count("\n") == 1
    assert len(stream.written) < 3_000


@pytest.mark.parametrize("length", [0, 1, 10, 11, 100])
def test_short_text_is_whole_and_long_text_says_how_long_it_was(length: int) -> None:
    text = "x" * length
    assert one_line(text, 10) == (text if length <= 10 else f"{'x' * 10}… ({length} characters)")


def test_every_module_takes_its_logger_from_here() -> None:
    """A logger of its own would write what it is given."""
    found = [
        f"{path.relative_to(CHECKOUT)}: {line.strip()}"
        for package in ("outbox", "agent_events")
        for path in sorted((CHECKOUT / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"logging\.(getLogger|debug|info|warning|error|exception|critical|log)\(", line)
    ]
    ours = [line for line in found if not line.startswith("outbox/log_text.py")]
    assert ours == ["outbox/brokers/kafka/client.py: logging.getLogger(name).addFilter(_without_credentials)"]
