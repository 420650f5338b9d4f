"""How records are compressed: what a producer may be told, and which libraries reading them takes.

Any client may write compressed records to a topic, whatever our own producer does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kafka import codec

_READERS: Final[Mapping[str, Callable[[], bool]]] = {
    "gzip": codec.has_gzip,
    "snappy": codec.has_snappy,
    "lz4": codec.has_lz4,
    "zstd": codec.has_zstd,
}

NAMES: Final[Mapping[int, str]] = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
"""As record batches number them."""


def missing() -> list[str]:
    """Return the codecs whose library is not installed here."""
    return sorted(name for name, is_there in _READERS.items() if not is_there())


def how_to_get(names: list[str]) -> str:
    """Return the command that installs the libraries of ``names``."""
    return f"pip install 'kafka-python[{','.join(names)}]'"


def fault_of(compression: object) -> str:
    """Return why a producer cannot compress by ``compression``; empty when it can."""
    if compression is None:
        return ""
    if not isinstance(compression, str) or compression not in _READERS:
        return f"'compression_type' must be one of {', '.join(_READERS)}, or None"
    if compression in missing():
        return f"'compression_type' is {compression!r}, and its library is missing: {how_to_get([compression])}"
    return ""
