"""A module that a person can read at a sitting: none of the library is longer than a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import outbox

MOST_LINES: Final = 300


def test_no_module_of_the_library_is_longer_than_a_bound() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in Path(outbox.__file__).parent.rglob("*.py")}
    assert len(lines) > 100
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}
