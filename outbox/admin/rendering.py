"""Turns moments, sizes, payloads and bytes into text that a person reads. Pure: text in, text out, never markup.

What comes out is plain text and is escaped by the template like any other; nothing here marks anything as safe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from outbox.operations.durations import humanise

SHOWN_CHARACTERS: Final = 64 * 1024
"""How much of a payload a detail page shows."""

PREVIEW_CHARACTERS: Final = 2_000
"""How much of a payload a list shows."""

_INDENT: Final = "  "
_DEEPEST: Final = 24
"""Deeper levels are indented no further: an array of a thousand brackets must not make a page of megabytes."""

_NESTED: Final = 3
"""JSON text inside of JSON text is opened up so many times."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]+|"', re.DOTALL)
_OPENING: Final = frozenset("{[")
_CLOSING: Final = frozenset("}]")
_LOOKS_LIKE_JSON: Final = re.compile(r'\s*(\{\s*["}]|\[\s*["{\[\]\d-])')
_HALF_ESCAPE: Final = re.compile(r'\\(u[0-9a-fA-F]{0,3})?"$')
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text for a page, and what to say about it."""

    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, exact and as a distance from now."""

    exact: str
    distance: str


def moment(at: datetime | None, now: datetime) -> Moment | None:
    """Return how ``at`` is shown at ``now``: exact in the site's time zone, and ``3m ago`` or ``in 3m``."""
    if at is None:
        return None
    age = now - at
    distance = f"in {humanise(-age)}" if age < timedelta(seconds=-1) else f"{humanise(age)} ago"
    return Moment(f"{timezone.localtime(at):%Y-%m-%d %H:%M:%S %Z}", distance)


def size_text(size_bytes: int) -> str:
    """Return a size as ``812 B``, ``12.3 KiB`` or ``4.0 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    if size_bytes < 1024 * 1024:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / 1024 / 1024:.1f} MiB"


def visible(text: str | None) -> str:
    """Return ``text`` with what cannot be seen, or turns a line around, as ``\\uXXXX``."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if text else ""


def first_line(text: str | None, limit: int = 240) -> str:
    """Return the first line of ``text``, cut with an ellipsis."""
    line = visible((text or "").strip().partition("\n")[0])
    return line if len(line) <= limit else f"{line[:limit].rstrip()}…"


def shown_json(text: str, *, limit: int = SHOWN_CHARACTERS, is_whole: bool = True) -> Shown:
    """Return JSON indented, up to ``limit`` characters; what is no JSON comes out nearly as it went in.

    ``is_whole`` is False where ``text`` is the beginning of something longer.
    """
    parts: list[str] = []
    length = 0
    for part in _indented(text, 0, _NESTED) if text.lstrip()[:1] in _OPENING else [text]:
        parts.append(part)
        length += len(part)
        if length >= limit:
            break
    shown = visible("".join(parts))
    if length > limit or not is_whole:
        return Shown(shown[:limit], f"Only the first {limit:,} characters are shown.")
    return Shown(shown)


def shown_bytes(raw: bytes | None, *, limit: int = SHOWN_CHARACTERS) -> Shown:
    """Return bytes as indented JSON or text where they are UTF-8, with escapes where they nearly are, else as hex."""
    if raw is None:
        return Shown("", "There is none (null).")
    data = bytes(raw)
    if not data:
        return Shown("", "It is empty.")
    head = data[:limit]
    text = head.decode("utf-8", "backslashreplace")
    if text.count("\\x") + len(_INVISIBLE.findall(text)) > len(head) // 8:
        note = "No text: shown as hexadecimal."
        cut = data[: limit // 4]
        if len(cut) < len(data):
            note += f" Only the first {len(cut):,} of {len(data):,} bytes."
        return Shown(_hex(cut), note)
    return shown_json(text, limit=limit, is_whole=len(head) == len(data))


def _hex(data: bytes) -> str:
    return "\n".join(f"{at:08x}  {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16))


def _indented(text: str, depth: int, nested: int) -> Iterator[str]:
    """Yield ``text`` as indented JSON, token by token: works on the beginning of a text, and keeps every number as is.

    A string that is JSON itself is opened up behind a mark.
    """
    before = ""
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in _CLOSING:
            depth = max(0, depth - 1)
            yield token if before in _OPENING else _line(depth) + token
        else:
            yield _space(before, token, depth)
            if token[0] == '"':
                yield from _string(token, depth, nested)
            else:
                yield token
            if token in _OPENING:
                depth += 1
        before = token


def _space(before: str, token: str, depth: int) -> str:
    """Return what stands between two tokens, the second of which closes nothing."""
    if before in _OPENING or before == ",":
        return _line(depth)
    if not before or token in {",", ":"}:
        return ""
    return " "


def _line(depth: int) -> str:
    return "\n" + _INDENT * min(depth, _DEEPEST)


def _string(token: str, depth: int, nested: int) -> Iterator[str]:
    value = _decoded(token)
    if value is None:
        yield token
    elif nested and _is_json(value, is_whole=len(token) > 1 and token[-1] == '"'):
        yield "(JSON text)"
        yield _line(depth + 1)
        yield from _indented(value, depth + 1, nested - 1)
    else:
        yield json.dumps(value, ensure_ascii=False)


def _is_json(text: str, *, is_whole: bool) -> bool:
    """Say whether ``text`` is a JSON object or array, or looks like the beginning of one."""
    if not _LOOKS_LIKE_JSON.match(text):
        return False
    if not is_whole:
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _decoded(token: str) -> str | None:
    """Return the value of a string literal, also of one that is cut off; None when it is none."""
    closed = token if len(token) > 1 and token[-1] == '"' else f'{token}"'
    for literal in (closed, _HALF_ESCAPE.sub('"', closed)):
        try:
            value = json.loads(literal, strict=False)
        except ValueError:
            continue
        return value if isinstance(value, str) else None
    return None
