"""Whose fault an error in a consumer's transaction is, and how to put it into words for its row."""

from __future__ import annotations

import traceback

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox.rows import Failure
from outbox.sql import Trouble, trouble_of


def trouble_behind(error: BaseException, using: str) -> Trouble:
    """Say whose fault ``error`` is, by the database error that it was raised from where there is one.

    Not by one that was merely being handled: an event whose own fault shows on that way only would never die.
    """
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        if isinstance(at, (DatabaseError, InterfaceError)):
            return trouble_of(at, using)
        seen.add(id(at))
        at = at.__cause__
    return Trouble.STATEMENT


def raise_if_away(error: Exception, using: str, *, began_on: object) -> None:
    """Raise an outage when the database went away, whatever a handler made of it.

    ``began_on`` is the driver's connection that the transaction began on: where it broke, Django has opened another
    one by now, so that asking the database says nothing about what happened. A handler that closes it leaves none,
    and that is no outage.

    :raises InterfaceError: the connection is another one, or none.
    """
    database = connections[using]
    is_other = began_on is not None and database.connection is not began_on and not database.closed_in_transaction
    if is_other or trouble_behind(error, using) is Trouble.OUTAGE:
        database.close()
        raise InterfaceError(f"the database went away during a transaction: {message_of(error)}") from error


def message_of(error: Exception) -> str:
    """Return what ``error`` says, or that it cannot say it."""
    try:
        return str(error)
    except Exception as unspeakable:  # noqa: BLE001 - the error is somebody else's, and so is what its text does
        return f"its message cannot be read: {type(unspeakable).__name__}"


def failure_of(error: Exception, *, with_traceback: bool = True) -> Failure:
    """Describe ``error``: the class and message a person reads first, the traceback behind."""
    name = type(error).__name__
    return Failure(
        reason=f"{name}: {message_of(error)}",
        error_class=name,
        traceback="".join(traceback.format_exception(error)) if with_traceback else None,
    )
