"""How deep JSON may go: what is published can be read by every process that has to. Pure."""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Final

import msgspec

from outbox.exceptions import FieldError

NESTING_LIMIT: Final = 200
"""So many arrays and objects may stand inside of each other. Decoders follow about as many as Python has frames left,
so what one process can write another may be unable to read."""

TOO_DEEP: Final = (
    f"it is nested deeper than {NESTING_LIMIT} levels, or holds itself; make it flat, or put the inner JSON into a text"
)

_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(each for each in range(256) if each not in b"[]{}")


def is_nested_too_deep(raw: bytes) -> bool:
    """Say whether JSON goes deeper than ``NESTING_LIMIT``; however deep that is, nothing here calls itself."""
    if raw.count(b"[") + raw.count(b"{") <= NESTING_LIMIT:
        return False
    outside_of_strings = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = array("b", outside_of_strings.translate(_STEPS, _NO_BRACKETS))  # 1 for each level down, -1 for each up
    return max(accumulate(steps), default=0) > NESTING_LIMIT


def encode_shallow(payload: msgspec.Struct) -> bytes:
    """Return ``payload`` as JSON.

    :raises FieldError: it is nested too deep; names the field.
    :raises TypeError, ValueError: something in it has no form in JSON.
    """
    try:
        encoded = msgspec.json.encode(payload)
        if not is_nested_too_deep(encoded):
            return encoded
    except RecursionError:
        pass
    names = (name for name in payload.__struct_fields__ if _is_too_deep(getattr(payload, name)))
    raise FieldError(next(names, "payload"), TOO_DEEP)


def _is_too_deep(value: object) -> bool:
    try:
        return is_nested_too_deep(msgspec.json.encode([value]))
    except RecursionError:
        return True
