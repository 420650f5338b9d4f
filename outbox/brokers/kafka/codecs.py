"""How records are compressed: what a producer may be told, and how batches are read, whoever wrote them.

Any client may write compressed records to a topic, whatever our own producer does. The client library decompresses a
batch whole: 0.7 MB of gzip can be 700 MB of zeros. So batches are decompressed here, piece by piece and up to a limit.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kafka import codec
from kafka.errors import UnsupportedCodecError

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a batch's records when they are not compressed; a larger batch is not read.

Our own producer writes none that is larger, however well it compresses: a batch takes one record of up to
``max_request_size`` (1 MiB by default), or several up to ``batch_size`` (512 KiB); both are counted before compression,
and ``fault_of_size`` keeps them below this limit.
"""

_PIECE_BYTES: Final = 1024 * 1024
"""Decompressed at a time. A decompressor holds little beside: gzip and lz4 up to 4 MiB, zstd its window."""

_READERS: Final[Mapping[str, Callable[[], bool]]] = {
    "gzip": codec.has_gzip,
    "snappy": codec.has_snappy,
    "lz4": lambda: codec.lz4 is not None,  # the others that the client takes, lz4f and lz4framed, know no limit
    "zstd": codec.has_zstd,
}

NAMES: Final[Mapping[int, str]] = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
"""As record batches number them."""


class MissingLibraryError(UnsupportedCodecError):  # type: ignore[misc] # the client has no types
    """Private to the Kafka broker. A codec's library is not installed here."""


class BatchTooLargeError(Exception):
    """Private to the Kafka broker. A batch decompresses to more than is read."""


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


def fault_of_size(options: Mapping[str, Any]) -> str:
    """Return why batches of a producer with ``options`` could be too large to be read; empty when they cannot.

    That holds without ``compression_type`` too: a topic may have its broker compress.
    """
    for name in ("batch_size", "max_request_size"):
        if (size := options.get(name, 0)) > MAX_BATCH_BYTES:
            return (
                f"{name!r} is {size:,}, and consumers read no batch of more than {MAX_BATCH_BYTES:,} bytes before "
                f"compression; lower it (payloads above REFERENCE_BYTES stay in their row)"
            )
    return ""


# --- reading ---------------------------------------------------------------------------------------------------------


def decompress(number: int, packed: memoryview, *, limit: int | None = None) -> bytearray:
    """Return the records of a batch, compressed by the codec ``number``; ``limit`` is in bytes.

    :raises BatchTooLargeError: they are more than ``limit`` (default: ``MAX_BATCH_BYTES``); no more were decompressed.
    :raises MissingLibraryError: it takes a library that is not installed.
    :raises UnsupportedCodecError: there is no such codec.
    :raises Exception: whatever a library raises at bytes that are not as they should be.
    """
    limit = MAX_BATCH_BYTES if limit is None else limit
    name = NAMES.get(number)
    if name is None:
        raise UnsupportedCodecError(f"compression type {number} is unknown")
    if name in missing():
        raise MissingLibraryError(f"records are compressed by {name}, whose library is missing: {how_to_get([name])}")
    records = bytearray()
    for piece in _PIECES[name](packed, limit):
        records += piece
        if len(records) > limit:
            raise _too_large(name, packed, limit)
    return records


def _too_large(name: str, packed: memoryview, limit: int) -> BatchTooLargeError:
    return BatchTooLargeError(f"{len(packed):,} bytes of {name} decompress to more than the limit of {limit:,} bytes")


def _gzip(packed: memoryview, _: int) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        yield from _read(file)


def _zstd(packed: memoryview, _: int) -> Iterator[bytes]:
    with codec.zstd.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True) as file:
        yield from _read(file)


def _read(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _lz4(packed: memoryview, _: int) -> Iterator[bytes]:
    """Decompress one frame; what is behind it means nothing to the client either."""
    decompressor = codec.lz4.LZ4FrameDecompressor()
    for at in range(0, len(packed), _PIECE_BYTES):
        given = bytes(packed[at : at + _PIECE_BYTES])
        while given or not decompressor.needs_input:
            yield decompressor.decompress(given, _PIECE_BYTES)
            if decompressor.eof:
                return
            given = b""
    raise EOFError("the frame of lz4 has no end")


_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
"""That, and two numbers that are not looked at: some producers write them the wrong way round."""


def _snappy(packed: memoryview, limit: int) -> Iterator[bytes]:
    """Decompress one block, or those of the frame that Java's library puts around them; each says how long it is."""
    left = limit
    for block in _snappy_blocks(packed):
        left -= _snappy_length(block)
        if left < 0:  # the library would make room for whatever the block says
            raise _too_large("snappy", packed, limit)
        yield codec.snappy.decompress(block)


def _snappy_blocks(packed: memoryview) -> Iterator[bytes]:
    if len(packed) <= _XERIAL_HEAD_BYTES or bytes(packed[: len(_XERIAL)]) != _XERIAL:
        yield bytes(packed)
        return
    at = _XERIAL_HEAD_BYTES
    while at < len(packed):
        (size,) = struct.unpack_from(">i", packed, at)
        at += 4
        if not 0 < size <= len(packed) - at:
            raise ValueError(f"a block of snappy has {size} bytes, where {len(packed) - at} are left")
        yield bytes(packed[at : at + size])
        at += size


def _snappy_length(block: bytes) -> int:
    """Return how long a block is decompressed: a number of 32 bits at its beginning, seven in each byte."""
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length
    raise ValueError("a block of snappy does not say how long it is")


_PIECES: Final[Mapping[str, Callable[[memoryview, int], Iterator[bytes]]]] = {
    "gzip": _gzip,
    "snappy": _snappy,
    "lz4": _lz4,
    "zstd": _zstd,
}
