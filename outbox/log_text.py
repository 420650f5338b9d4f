"""Log lines that stay lines: what comes from outside is cut, and written without control characters.

An exception's text may be of any length and hold anything: line breaks that look like another log line, codes that a
terminal obeys, halves of characters that no stream can write. Constant texts stay as they are, so that lines can still
be grouped by them. Pure.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["OneLineFilter", "get_logger"]

TEXT_MAX_LENGTH: Final = 2_000
"""Characters of one value in a log line, and of one line of a traceback."""

TRACEBACK_MAX_LINES: Final = 200

_BREAKS: Final = re.compile("[\t-\r\x1c-\x1e\x85\u2028\u2029]+")
_INDENT: Final = "  "
"""In front of each line of a traceback, so that none can be taken for a log line of its own."""


def one_line(text: str, max_length: int = TEXT_MAX_LENGTH) -> str:
    """Return ``text`` on one line, at most about ``max_length`` characters of it, all of which can be seen."""
    shown = _BREAKS.sub(" ", text[:max_length])
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)[:max_length]
    return shown if len(text) <= max_length else f"{shown}… ({len(text):,} characters)"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of ``error`` in at most ``TRACEBACK_MAX_LINES`` lines of bounded length."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as unspeakable:  # noqa: BLE001 - the error is a stranger's, and so is what describing it does
        text = f"{type(error).__name__}, whose traceback cannot be read: {type(unspeakable).__name__}"
    return _bounded(text)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, whose records become ``one_line`` whatever handler they go to."""
    logger = logging.getLogger(name)
    logger.addFilter(_one_line)
    return logger


class OneLineFilter(logging.Filter):
    """Makes records safe to write. A project may have it at its handlers too: they get records of any logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change ``record`` in place, once; let it through."""
        if getattr(record, "is_one_line", False):
            return True
        record.is_one_line = True
        if isinstance(record.args, Mapping):
            record.args = {key: _safe(value) for key, value in record.args.items()}
        elif record.args:
            record.args = tuple(map(_safe, record.args))
        else:
            record.msg = _words(str, record.msg)
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            record.exc_text = traceback_of(record.exc_info[1])  # formatters take it as it is
        elif record.exc_text:
            record.exc_text = _bounded(record.exc_text)
        if record.stack_info:
            record.stack_info = _bounded(record.stack_info)
        return True


_one_line: Final = OneLineFilter()


class _Safe:
    """A value of a record, put into words when the record is written, and at no other time."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return _words(str, self._value)

    def __repr__(self) -> str:
        return _words(repr, self._value)


def _safe(value: object) -> Any:
    return value if value is None or isinstance(value, (int, float)) else _Safe(value)


def _words(say: Callable[[object], str], value: object) -> str:
    try:
        return one_line(say(value))
    except Exception as unspeakable:  # noqa: BLE001 - the value is a stranger's, and so is what its text does
        return f"{type(value).__name__} whose text cannot be read: {type(unspeakable).__name__}"


def _bounded(text: str) -> str:
    lines = text.splitlines()
    if (left_out := len(lines) - TRACEBACK_MAX_LINES) > 0:
        half = TRACEBACK_MAX_LINES // 2
        lines = [*lines[:half], f"… {left_out:,} lines are left out …", *lines[-half:]]
    return "\n".join(_INDENT + one_line(line) for line in lines)
