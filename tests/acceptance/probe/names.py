"""What processes of the probe service and those that look at them both know. Declares no event."""

from __future__ import annotations

from typing import Final, Literal

ELSEWHERE: Final = "elsewhere"
"""The alias of a database that is away, where a process has one."""

HOOK_ERROR: Final = "a hook that raises"
"""What such a hook says."""

Act = Literal[
    "exit",
    "kill",
    "segfault",
    "match",
    "swallow",
    "receive",
    "loop",
    "big_statement",
    "lose_connection",
    "wait",
    "write_row",
]
EXIT_CODE: Final = 3
"""What a process ends with whose handler's act is ``exit``."""
WAITING: Final = "handler"
"""The point at which a handler stays whose act is ``wait``; see ``tests.acceptance.probe.brokers``."""
