"""Settings of workers whose wall clock libfaketime tells: a sleep that works, and another database that is away."""

from __future__ import annotations

import select
import time
from typing import SupportsIndex

from smartflow.database_url import database
from smartflow.settings import DATABASES
from tests.acceptance.probe.names import ELSEWHERE
from tests.acceptance.settings import *  # noqa: F403

# Nothing listens there: one handler uses it, and its failure must stay that event's own.
DATABASES = {**DATABASES, ELSEWHERE: database("mysql://nobody:nothing@127.0.0.1:9/nowhere")}


def _sleep(seconds: float | SupportsIndex) -> None:
    select.select((), (), (), float(seconds))


# Python sleeps until a moment of the monotonic clock; libfaketime 0.9.10 moves that moment into the past although it
# leaves the clock alone, and the sleep ends in EINVAL.
time.sleep = _sleep
