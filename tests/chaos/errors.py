"""What a fault raises."""

from __future__ import annotations


class MissedError(Exception):
    """There was nothing for a fault to take hold of."""


class ImpossibleError(Exception):
    """This machine cannot inject the fault at all; the text says what it lacks."""
