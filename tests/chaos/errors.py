"""What a fault raises."""

from __future__ import annotations


class MissedError(Exception):
    """There was nothing for a fault to take hold of."""
