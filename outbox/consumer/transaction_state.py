"""What Django and the driver know of an open transaction, compared around the call of code that is not ours."""

from __future__ import annotations

from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

_PG_IN_TRANSACTION: Final = 2
"""libpq's ``PQTRANS_INTRANS``: there is a transaction, it is not aborted, and no statement is on its way."""


class TransactionState:
    """The open transaction of ``connection`` as it is now."""

    __slots__ = ("_blocks", "_connection", "_depth", "_driver", "_marked_by")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection: Any = connection
        self._driver: Any = connection.connection
        self._depth = len(connection.savepoint_ids)
        self._blocks = len(connection.atomic_blocks)
        self._marked_by = self._first_error()

    @property
    def is_kept(self) -> bool:
        """Say whether the same transaction is open, in the same blocks, and may be committed.

        MySQL's driver does not tell whether there is one: there a savepoint does, before the mark.
        """
        connection = self._connection
        return bool(
            not connection.needs_rollback
            and connection.in_atomic_block
            and len(connection.savepoint_ids) == self._depth
            and connection.connection is self._driver
            and self._driver_is_in_transaction()
        )

    @property
    def marked_by(self) -> BaseException | None:
        """Return the error that Django marked the transaction for rollback by since; it keeps the last one for ever."""
        error = self._first_error()
        return None if error is self._marked_by else error

    def leave_blocks(self) -> None:
        """Leave the blocks that were entered since and are open, so that those around them end what they began."""
        if len(self._connection.savepoint_ids) > self._depth:
            del self._connection.savepoint_ids[self._depth :]
            del self._connection.atomic_blocks[self._blocks :]

    def _first_error(self) -> BaseException | None:
        error: BaseException | None = self._connection.rollback_exc
        while isinstance(error, TransactionManagementError):  # a later statement, which Django refused
            error = error.__cause__
        return error

    def _driver_is_in_transaction(self) -> bool:
        vendor = self._connection.vendor
        if vendor == "sqlite":
            return bool(self._driver.in_transaction)
        if vendor == "postgresql":
            return bool(self._driver.info.transaction_status == _PG_IN_TRANSACTION)
        return True
