"""Runs a function on several threads at once, each with database connections of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import connections

T = TypeVar("T")
A = TypeVar("A")


def together(function: Callable[[A], T], arguments: Iterable[A]) -> list[T]:
    """Return what ``function`` gave for each argument; all begin at the same moment. Raises the first error."""
    given = list(arguments)
    start = threading.Barrier(len(given))

    def run(argument: A) -> T:
        try:
            start.wait(30)
            return function(argument)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=len(given)) as pool:
        return list(pool.map(run, given))
