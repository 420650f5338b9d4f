"""The hash by which Kafka's clients find the partition of a key."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

_FACTOR: Final = 0x5BD1E995
_UINT32: Final = 0xFFFFFFFF


@lru_cache(maxsize=1 << 13)  # the events of a key come together
def murmur2(data: bytes) -> int:
    """Return the 32-bit MurmurHash2 of ``data`` with the seed that Kafka's clients share."""
    size = len(data)
    mixed = 0x9747B28C ^ size
    for word in struct.unpack_from(f"<{size // 4}I", data):
        product = word * _FACTOR & _UINT32
        mixed = (mixed * _FACTOR ^ (product ^ product >> 24) * _FACTOR) & _UINT32
    if rest := data[size & ~3 :]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * _FACTOR & _UINT32
    mixed = (mixed ^ mixed >> 13) * _FACTOR & _UINT32
    return mixed ^ mixed >> 15
