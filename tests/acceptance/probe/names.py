"""What processes of the probe service and those that look at them both know. Declares no event."""

from __future__ import annotations

from typing import Final

ELSEWHERE: Final = "elsewhere"
"""The alias of a database that is away, where a process has one."""

HOOK_ERROR: Final = "a hook that raises"
"""What such a hook says."""
