"""A process that publishes: ``python -m benchmarks.writers one|load|steady|paced …``, until SIGTERM.

It writes what it has done into a file, a line at a time, for whoever measures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import django

django.setup()

import msgspec  # noqa: E402
from django.db import Error, connection, transaction  # noqa: E402

from agent_events.agent.events import (  # noqa: E402
    AgentStateSnapshot,
    AgentTimelinePersistRequested,
    ChatHistoryPersistRequested,
    ChatTokenUsageAdjustRequested,
)
from agent_events.agent.models import AgentTimelineEvent  # noqa: E402
from outbox import publish, publish_many  # noqa: E402
from outbox.coordination.shutdown import StopFlag, stop_on_signals  # noqa: E402

CONVERSATIONS: Final = 5_000
_BATCH: Final = 100
_LOOK: Final = timedelta(milliseconds=50)
_ENVELOPE_BYTES: Final = 320
"""What a snapshot's payload column holds beside the notes."""


def snapshot(conversation: str, *, payload_bytes: int) -> AgentStateSnapshot:
    """Return a snapshot whose payload column is about so long; the least is about 250 bytes."""
    notes = "x" * max(payload_bytes - _ENVELOPE_BYTES, 0)
    state = {"runtime_state": {"common_state": {"phase": "plan"}}, "notes": notes}
    body = json.dumps(state if payload_bytes >= _ENVELOPE_BYTES else {})
    return AgentStateSnapshot(conversation_id=conversation, user_id=1, phase="plan", snapshot_json=body)


def events(payload_bytes: int) -> Iterator[msgspec.Struct]:
    """Return events of every type that the agent service has, snapshots above all, without end."""
    for number in itertools.count(1):
        conversation = f"conv-{number * 7919 % CONVERSATIONS}"
        match number % 10:
            case 0:
                yield AgentTimelinePersistRequested(
                    user_id=1,
                    conversation_id=conversation,
                    seq=number,
                    kind="tool",
                    content="x" * 200,
                    tokens_consumed=3,
                )
            case 3 | 6:
                yield ChatHistoryPersistRequested(
                    user_id=1, conversation_id=conversation, role="user", message="x" * 400, tokens_consumed=7
                )
            case 9:
                yield ChatTokenUsageAdjustRequested(
                    user_id=1,
                    conversation_id=conversation,
                    tokens_delta=5,
                    reason="tool",
                    triggered_at=datetime.now(UTC),
                )
            case _:
                yield snapshot(conversation, payload_bytes=payload_bytes)


def snapshots(payload_bytes: int) -> Iterator[msgspec.Struct]:
    """Return snapshots of one conversation after the other, without end."""
    for number in itertools.count(1):
        yield snapshot(f"conv-{number * 7919 % CONVERSATIONS}", payload_bytes=payload_bytes)


def load(stop: StopFlag, journal: Path, source: Iterator[msgspec.Struct], *, backlog: int) -> None:
    """Publish as fast as relay and consumer keep up: pause while more than ``backlog`` events are unfinished.

    The journal has the number of events that are committed, a line after each transaction.
    """
    committed = 0
    with journal.open("w", buffering=1) as file:
        while not stop.is_set:
            if _unfinished(backlog) >= backlog:
                stop.wait(_LOOK)
                continue
            for _ in range(5):  # so that the looking costs little
                with transaction.atomic():
                    publish_many(itertools.islice(source, _BATCH))
                committed += _BATCH
                file.write(f"{committed}\n")


def steady(stop: StopFlag, journal: Path, *, name: str, rate: float, payload_bytes: int) -> None:
    """Run ``rate`` transactions a second, each with a business row and an event, each at a moment fixed beforehand.

    The journal has a line each: when it was due, when it began and ended (monotonic seconds), how long a statement took
    that does nothing, and its error.
    """
    rand = random.Random(name)
    with journal.open("w", buffering=1) as file:
        began = time.monotonic()
        for number in itertools.count():
            due = began + number / rate
            if _stopped_before(due - time.monotonic(), stop):
                return
            conversation = f"conv-{rand.randrange(CONVERSATIONS)}"
            start, error = time.monotonic(), ""
            try:
                with transaction.atomic():
                    AgentTimelineEvent.objects.create(
                        chat_id=f"{name}-{conversation}", user_id=1, seq=number, kind="tool", content="x" * 200
                    )
                    publish(snapshot(conversation, payload_bytes=payload_bytes))
                end = time.monotonic()
                with connection.cursor() as cursor:
                    cursor.execute("DO 0")
            except Error as failure:
                error = f"{type(failure).__name__}: {failure}".replace("\n", " ")
                end = time.monotonic()
            file.write(f"{due:.6f}\t{start:.6f}\t{end:.6f}\t{time.monotonic() - end:.6f}\t{error}\n")


def paced(stop: StopFlag, journal: Path, *, rate: float, each: int, payload_bytes: int) -> None:
    """Publish ``rate`` events a second in transactions of ``each``, each at a moment fixed beforehand.

    The journal has a line each: the first id, how many events, when it was due, when it was committed (seconds since
    1970). The ids of one INSERT follow each other.
    """
    source = snapshots(payload_bytes)
    with journal.open("w", buffering=1) as file:
        began = time.time()
        for number in itertools.count():
            due = began + number * each / rate
            if _stopped_before(due - time.time(), stop):
                return
            with transaction.atomic():
                publish_many(itertools.islice(source, each))
                first_id = connection.connection.insert_id()
            file.write(f"{first_id}\t{each}\t{due:.6f}\t{time.time():.6f}\n")


def _stopped_before(pause_s: float, stop: StopFlag) -> bool:
    """Wait until the next one is due; say whether asked to stop. One who is late does not wait at all."""
    return stop.is_set if pause_s <= 0 else stop.wait(timedelta(seconds=pause_s))


def _unfinished(limit: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM (SELECT 1 FROM agent_outbox_messages"
            " WHERE status IN ('pending', 'published') LIMIT %s) unfinished",
            [limit],
        )
        return int(cursor.fetchone()[0])


def main() -> None:
    """Parse and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("one", "load", "steady", "paced"))
    parser.add_argument("--bytes", type=int, required=True, help="length of a snapshot's payload column")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--backlog", type=int, default=5_000)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--name", default="")
    parser.add_argument("--each", type=int, default=1, help="events of one transaction")
    parser.add_argument("--snapshots", action="store_true", help="no other events")
    options = parser.parse_args()
    with stop_on_signals() as stop:
        if options.mode == "one":
            publish(snapshot("conv-of-the-template", payload_bytes=options.bytes))
        elif options.mode == "load":
            source = snapshots(options.bytes) if options.snapshots else events(options.bytes)
            load(stop, options.journal, source, backlog=options.backlog)
        elif options.mode == "paced":
            paced(stop, options.journal, rate=options.rate, each=options.each, payload_bytes=options.bytes)
        else:
            steady(stop, options.journal, name=options.name, rate=options.rate, payload_bytes=options.bytes)


if __name__ == "__main__":
    main()
