"""How lengths of time are written, in commands and in the admin. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

UNITS_S: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


def humanise(length: timedelta) -> str:
    """Say a length of time in its two largest units, days at the most: ``3m 12s``, ``9d``; below a second, ``0s``."""
    left_s = max(int(length.total_seconds()), 0)
    words = []
    for unit in "dhms":
        number, left_s = divmod(left_s, UNITS_S[unit])
        if number:
            words.append(f"{number}{unit}")
        elif words:
            break
    return " ".join(words[:2]) or "0s"
