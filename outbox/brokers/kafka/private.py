"""What is used of kafka-python and is not public: the version is bounded, each use is looked up, and can be absent.

Private names change without notice. So nothing of the library is changed for the process: what is ours is a subclass or
an attribute of a client that we built. Each part below has a public way, which is slower or does less; it is taken, and
said once a process, where a name of the part is missing or its self-test fails (``_kafka_ways``).
"""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

import kafka

from outbox.log_text import get_logger

logger = get_logger(__name__)

TESTED_FROM: Final = (3, 0, 12)
TESTED_BEFORE: Final = (3, 1)
REQUIREMENT: Final = "kafka-python>=3.0.12,<3.1"
"""As pyproject.toml has it; the versions between the two above."""

_END_S: Final = 2.0
"""How long a thread of a closed client may take to end."""


class Part(enum.Enum):
    """What a set of private names is for; the value says what goes on without it."""

    WRITING = "records are encoded by send(), at twice the cost"
    READING = (
        "records are read by the client alone: one that it cannot read holds up its partition, and nothing bounds the "
        "memory that a compressed batch takes"
    )
    JOINING = "poll() joins the group, which may take several rebalances"
    HANDING_OVER = "partitions move without waiting for their records in work, and those come again"
    NETWORK = "why no broker lets us in is not known, and sending to a misspelt topic may create it"
    CLOSING = "it is not known whether a closed client has ended its threads and connections"


_said: Final[set[Part]] = set()


def do_without(part: Part, reason: object) -> None:
    """Say that the public way is taken for ``part``, once a process."""
    if part not in _said:
        _said.add(part)
        logger.warning(
            "kafka-python %s is not as expected, using its public interface: %s (%s)",
            kafka.__version__,
            part.value,
            reason,
        )


def look_up(part: Part, thing: Any, *paths: str) -> Any:
    """Return what the dotted ``paths`` lead to from ``thing``, as a tuple where they are several.

    None where one of them is missing, which is said once.
    """
    try:
        return attrgetter(*paths)(thing)
    except AttributeError as error:
        do_without(part, error)
        return None


def untested_version(version: str | None = None) -> str:
    """Return the installed version of the library where it is none of those that were tested, else an empty text."""
    version = kafka.__version__ if version is None else version
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    return "" if TESTED_FROM <= numbers < TESTED_BEFORE else version


def close_client(client: Any, close: Callable[[], None], network: Any = None) -> None:
    """Close ``client`` by ``close``, and see that its I/O thread has ended: one that has not keeps its connections.

    Where it goes on, ``network``, the client below, is closed as well, and what does not help is said.
    """
    thread = _thread_of(client)
    close()
    if _has_ended(thread):
        return
    if network is not None:
        network.close()
    if not _has_ended(thread):
        logger.warning(
            "Kafka client not closed: its thread goes on %.0f s later thread=%s kafka_python=%s",
            _END_S,
            getattr(thread, "name", thread),
            kafka.__version__,
        )


def _thread_of(client: Any) -> threading.Thread | None:
    """Return the I/O thread of a producer, a consumer or an admin client; None where there is none to be found."""
    missing: AttributeError | None = None
    for path in ("_sender", "_net._io_thread"):
        try:
            thread = attrgetter(path)(client)
        except AttributeError as error:
            missing = error
            continue
        if thread is None or isinstance(thread, threading.Thread):
            return thread
    do_without(Part.CLOSING, missing)
    return None


def _has_ended(thread: threading.Thread | None) -> bool:
    if thread is None or thread is threading.current_thread():
        return True
    thread.join(_END_S)
    return not thread.is_alive()
