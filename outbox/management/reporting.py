"""What the commands share: arguments, and errors said in one line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from outbox.conf import outbox_settings
from outbox.exceptions import OutboxError


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turn an error of the outbox into a message and exit code 1; a traceback helps nobody with a wrong name."""
    try:
        yield
    except OutboxError as error:
        raise CommandError(str(error)) from error


def refuse_when_disabled() -> None:
    """End with a clear message when sending is switched off.

    :raises CommandError: ``OUTBOX['ENABLED']`` is false.
    """
    if not outbox_settings().enabled:
        raise CommandError(
            "sending is switched off (OUTBOX['ENABLED'] is False; in this project: KAFKA_ENABLED=false). Events are "
            "written and wait in the outbox tables; switch it on to send them."
        )


def positive(text: str) -> int:
    """Read a whole number above zero."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number
