"""What a consumer sees of the statements that handlers send to its database.

Around the statements of code that is not ours, by ``connection.execute_wrapper``: an error that a handler catches may
have undone more than its own statement, and the error alone does not say which database it came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from django.db.utils import DatabaseError, InterfaceError

from outbox.coordination.database_errors import ErrorKind, is_lock_wait, kind_of, rolls_back_transaction
from outbox.exceptions import TransactionEndedError

_IN_FRONT: Final = r"(?:\s|(?>/\*(?!!).*?\*/)|/\*!\d*|(?>(?:--|\#)[^\n]*\n))*"
"""Comments and white space. What stands in ``/*! … */`` is executed on MySQL."""
_ENDING: Final = (
    r"COMMIT|ROLLBACK(?!\s+(?:WORK\s+)?TO\b)|BEGIN|START\s+TRANSACTION|END|ABORT|PREPARE\s+TRANSACTION"
    r"|SET\s+(?:SESSION\s+|LOCAL\s+|@@(?:SESSION\.|LOCAL\.)?)?AUTOCOMMIT"
)
_ENDING_ON_MYSQL: Final = (
    r"ALTER|CREATE(?!\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|TRUNCATE|RENAME|GRANT|REVOKE|SET\s+PASSWORD"
    r"|LOCK\s+TABLES?|UNLOCK\s+TABLES?|ANALYZE|OPTIMIZE|REPAIR|CHECK|FLUSH|CACHE\s+INDEX|LOAD\s+INDEX|INSTALL|UNINSTALL|XA"
)
"""Statements that commit by themselves: https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html"""


def _begins_with(words: str) -> re.Pattern[str]:
    return re.compile(rf"{_IN_FRONT}(?:{words})\b", re.IGNORECASE | re.DOTALL)


_ENDS_TRANSACTION: Final = _begins_with(_ENDING)
_ENDS_TRANSACTION_ON_MYSQL: Final = _begins_with(f"{_ENDING}|{_ENDING_ON_MYSQL}")


class StatementWatch:
    """Remembers the errors of one transaction's statements, and refuses those that would end it.

    What ended the transaction is refused before it is sent: it would commit the effects of other events without their
    marks.
    """

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.fatal: BaseException | None = None
        """After this error nothing of the transaction is left, whatever the code that caught it believes."""
        self.lock_waits_s = 0.0

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        connection = context["connection"]
        ends_transaction = _ENDS_TRANSACTION_ON_MYSQL if connection.vendor == "mysql" else _ENDS_TRANSACTION
        if isinstance(sql, str) and ends_transaction.match(sql):
            raise TransactionEndedError(sql)
        began_s = perf_counter()
        try:
            return execute(sql, params, many, context)
        except (DatabaseError, InterfaceError) as error:
            self._note(error, connection, perf_counter() - began_s)
            raise

    def _note(self, error: BaseException, connection: Any, elapsed_s: float) -> None:
        self.errors.append(error)
        if is_lock_wait(error, connection.vendor):
            self.lock_waits_s += elapsed_s
        if connection.closed_in_transaction:
            return  # by the code itself: what it sends then fails for no other reason
        is_lost = kind_of(error, connection.alias) in (ErrorKind.UNAVAILABLE, ErrorKind.DISCONNECTED)
        if is_lost or rolls_back_transaction(error, connection.vendor):
            self.fatal = self.fatal or error
