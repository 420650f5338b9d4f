"""What an operator ticked on a page that lists rows of several tables: ``agent:17,task:4``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Selection = Mapping[str, list[int]]
"""Table (or service) -> ids, in their order."""

_TOKEN = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<id>\d{1,18})")


def read_selection(values: Iterable[str]) -> Selection:
    """Read tokens, each value holding one or many; what is none is passed over."""
    chosen: dict[str, set[int]] = {}
    for value in values:
        for token in value.split(","):
            found = _TOKEN.fullmatch(token.strip())
            if found:
                chosen.setdefault(found["name"], set()).add(int(found["id"]))
    return {name: sorted(ids) for name, ids in chosen.items()}


def write_selection(selection: Selection) -> str:
    """Return ``selection`` as one value of a form: Django limits the number of fields, not their length."""
    return ",".join(f"{name}:{row_id}" for name, ids in selection.items() for row_id in ids)


def count(selection: Selection) -> int:
    """Return how many rows are selected."""
    return sum(len(ids) for ids in selection.values())


def outcome(done: int, asked: int, *, verb: str, otherwise: str) -> str:
    """Return what was done of what was asked: ``2 of 3 were replayed; 1 was not dead any more.``"""
    were = "was" if done == 1 else "were"
    if done == asked:
        return f"{done:,} {were} {verb}."
    missed = asked - done
    return f"{done:,} of {asked:,} {were} {verb}; {missed:,} {'was' if missed == 1 else 'were'} {otherwise}."
