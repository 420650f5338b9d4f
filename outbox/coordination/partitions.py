"""A set of partitions as a short text for one column: ``0-3,7``. Pure."""

from __future__ import annotations

from collections.abc import Collection

Range = tuple[int, int]


def encode_partitions(partitions: Collection[int], *, max_length: int) -> str:
    """Return ``partitions`` as ranges in ascending order, in ``max_length`` characters at the most.

    What does not fit is made to fit by naming more, never fewer: the ranges behind the last one that fits become one.
    """
    return _fit(_ranges(partitions), max_length)


def decode_partitions(text: str) -> list[Range]:
    """Return the ranges of ``text``, both ends included; what cannot be read is left out."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.append((int(first), int(last or first)))
    return found


def names_partition(ranges: Collection[Range], partition: int) -> bool:
    """Say whether ``partition`` lies in one of ``ranges``."""
    return any(first <= partition <= last for first, last in ranges)


def without_partitions(text: str, partitions: Collection[int], *, max_length: int) -> str:
    """Return ``text`` without ``partitions``, as far as that fits: a range that is split takes more room."""
    left: list[Range] = []
    for first, last in decode_partitions(text):
        begin = first
        for gone in sorted(each for each in set(partitions) if first <= each <= last):
            if begin < gone:
                left.append((begin, gone - 1))
            begin = gone + 1
        if begin <= last:
            left.append((begin, last))
    return _fit(left, max_length)


def _ranges(partitions: Collection[int]) -> list[Range]:
    ranges: list[Range] = []
    for partition in sorted(set(partitions)):
        if ranges and ranges[-1][1] == partition - 1:
            ranges[-1] = (ranges[-1][0], partition)
        else:
            ranges.append((partition, partition))
    return ranges


def _fit(ranges: list[Range], max_length: int) -> str:
    texts = [_text(each) for each in ranges]
    if len(whole := ",".join(texts)) <= max_length:
        return whole
    for kept in range(len(texts) - 1, -1, -1):
        rest = _text((ranges[kept][0], ranges[-1][1]))
        if len(cut := ",".join([*texts[:kept], rest])) <= max_length:
            return cut
    raise ValueError(f"not even one range fits in {max_length} characters")


def _text(each: Range) -> str:
    first, last = each
    return str(first) if first == last else f"{first}-{last}"
