"""What the commands share: arguments, and errors said in one line."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from django.core.management.base import CommandError
from django.db.utils import DatabaseError, InterfaceError, OperationalError

from outbox.conf import outbox_settings
from outbox.exceptions import OutboxError
from outbox.log_text import one_line
from outbox.operations.durations import UNITS_S

_MESSAGE_MAX_LENGTH: Final = 20_000
"""A message may list names that a project has many of."""


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turn an error of the outbox into a message and exit code 1; a traceback helps nobody with a wrong name.

    :raises CommandError: the block raised an ``OutboxError``.
    """
    try:
        yield
    except OutboxError as error:
        raise CommandError(one_line(str(error), _MESSAGE_MAX_LENGTH)) from error


@contextmanager
def explain_refusal() -> Iterator[None]:
    """Say in one line what a worker cannot wait out: the database answers, and refuses a statement."""
    try:
        yield
    except DatabaseError as error:
        raise CommandError(
            f"the database refused a statement: {one_line(str(error))}. Are its tables up to date? See `manage.py "
            f"migrate` and `manage.py check --database default`."
        ) from error


@contextmanager
def explain_outage() -> Iterator[None]:
    """Do the same with an error of the database server; for commands that a person or a timer starts again."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise CommandError(f"database error: {one_line(str(error))}") from error


def refuse_when_disabled() -> None:
    """End with a clear message when sending is switched off.

    :raises CommandError: ``OUTBOX['ENABLED']`` is false.
    """
    if not outbox_settings().enabled:
        raise CommandError(
            "sending is switched off (OUTBOX['ENABLED'] is False; in this project: KAFKA_ENABLED=false). Events are "
            "written and wait in the outbox tables; switch it on to send them."
        )


_LARGEST: Final = 2**31 - 1


def positive(text: str) -> int:
    """Read a whole number from 1 to 2,147,483,647, as the ``type`` of a command's argument.

    :raises ArgumentTypeError: the text is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number <= _LARGEST:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_LARGEST}")
    return number


def share(text: str) -> float:
    """Read a part of a whole, from 0.01 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 1:
        raise ArgumentTypeError(f"{text!r} is not a share from 0.01 to 1")
    return number


_DURATION: Final = re.compile("".join(rf"(?:(?P<{unit}>\d{{1,9}}){unit})?" for unit in UNITS_S))


def duration(text: str) -> timedelta:
    """Read a length of time above zero, as the ``type`` of a command's argument: ``7d``, ``36h``, ``1h30m``.

    The unit is always said: weeks, days, hours, minutes or seconds.

    :raises ArgumentTypeError: the text is none, or longer than a hundred years.
    """
    found = _DURATION.fullmatch(text.replace(" ", "").lower())
    parts = {unit: int(number) for unit, number in found.groupdict(default="0").items()} if found else {}
    try:
        length = timedelta(seconds=sum(number * UNITS_S[unit] for unit, number in parts.items()))
    except OverflowError:
        length = timedelta(0)
    if length <= timedelta(0) or length > timedelta(days=36_500):
        raise ArgumentTypeError(f"{text!r} is not a length of time; write it like 30s, 15m, 36h, 7d, 2w or 1h30m")
    return length
