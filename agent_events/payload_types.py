"""Types that the payloads of several services share; constraints are checked at publish and at decode."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from outbox import FieldError

Int64 = 2**63 - 1
_NO_BLANK_ENDS: Final = r"\A\S(?:(?s:.*)\S)?\Z"
"""A table of MySQL may compare texts without regard to trailing blanks: ids that differ in them only would be one."""

UserId = Annotated[int, msgspec.Meta(gt=0, le=Int64)]
RowId = Annotated[int, msgspec.Meta(gt=0, le=Int64)]
ConversationId = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_NO_BLANK_ENDS)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
"""A short word of a closed or open vocabulary: a role, a kind, a reason, a type."""
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_NO_BLANK_ENDS)]
Reference = Annotated[str, msgspec.Meta(max_length=128)]
"""The id of something elsewhere; other software writes an empty text where there is none."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=Int64)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""RFC 3339 with an offset, as Go writes its times."""


def check_storable(payload: msgspec.Struct) -> None:
    """Refuse what no table can hold: PostgreSQL's texts have no NUL, and a time needs a year in UTC.

    Without this the event would fail at every attempt, and only on some databases.

    :raises FieldError: names the field.
    """
    for name in payload.__struct_fields__:
        value = getattr(payload, name)
        if isinstance(value, str) and "\x00" in value:
            raise FieldError(name, "it holds a NUL; remove it")
        if isinstance(value, datetime):
            try:
                value.astimezone(UTC)
            except OverflowError:
                raise FieldError(name, f"{value.isoformat()} is out of range in UTC") from None
