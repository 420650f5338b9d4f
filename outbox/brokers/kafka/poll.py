"""How many bytes of records one poll gives: the client counts records only, and a small answer can hold large ones."""

from __future__ import annotations


class PollRoom:
    """What one poll of one consumer may still give, in bytes; the record that goes beyond it is the last one."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class PollFullError(Exception):
    """Private to the Kafka broker. There was no room left.

    The client raises it at its next poll, and loses nothing by it: poll again.
    """
