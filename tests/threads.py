"""Threads for tests, each with database connections of its own: many at one moment, or for as long as a test lasts."""

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


class Threads:
    """Threads that work beside the test; it sees their errors."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._started: list[threading.Thread] = []

    def start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                self.errors.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=run, daemon=True)
        self._started.append(thread)
        thread.start()
        return thread

    def are_all_over(self) -> bool:
        return not any(thread.is_alive() for thread in self._started)

    def check_no_errors(self) -> None:
        assert self.errors == [], self.errors

    def check_all_ended(self) -> None:
        """See that nobody is left at work, and that nobody failed."""
        alive = [thread for thread in self._started if thread.is_alive()]
        assert not alive, alive
        self.check_no_errors()
