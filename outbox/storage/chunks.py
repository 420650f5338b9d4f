"""Cuts what one statement would be too large for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

INSERT_MAX_ROWS: Final = 500
INSERT_MAX_BYTES: Final = 4 * 1024 * 1024
"""One INSERT stays well below the smallest usual ``max_allowed_packet`` (MariaDB's 16 MiB), also with all escaped."""


def chunks(
    items: Iterable[T], size: Callable[[T], int], *, max_items: int = INSERT_MAX_ROWS, max_bytes: int = INSERT_MAX_BYTES
) -> Iterator[list[T]]:
    """Cut ``items`` into lists of at most ``max_items`` and ``max_bytes``; what is larger by itself comes alone."""
    chunk: list[T] = []
    total = 0
    for item in items:
        length = size(item)
        if chunk and (len(chunk) >= max_items or total + length > max_bytes):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += length
    if chunk:
        yield chunk
