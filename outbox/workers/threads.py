"""Runs workers on threads of one process, each within the bounds of its own database sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from django.db import connections

from outbox.coordination.shutdown import StopFlag
from outbox.log_text import get_logger
from outbox.storage.sessions import worker_session

logger = get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerRun(Generic[T]):
    """What one thread does; its sessions of ``using`` may say nothing for ``idle``."""

    work: Callable[[], T]
    using: str
    idle: timedelta


def run_together(runs: Mapping[str, WorkerRun[T]], stop: StopFlag) -> dict[str, T]:
    """Run each on a thread named after its service; when one ends in an error, stop the others and raise it."""
    totals: dict[str, T] = {}
    errors: list[BaseException] = []

    def run(service: str, each: WorkerRun[T]) -> None:
        try:
            with worker_session(each.using, idle=each.idle):
                totals[service] = each.work()
        except BaseException as error:
            logger.exception("worker of %s ended in an error", service)
            errors.append(error)
            stop.set()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=item, name=f"outbox-{item[0]}", daemon=True) for item in runs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(timeout=0.2)  # so that the main thread takes signals
    if errors:
        raise errors[0]
    return totals
