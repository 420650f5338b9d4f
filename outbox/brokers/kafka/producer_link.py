"""One producing client of kafka-python from its making to its end, and the batches that went through it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import KafkaError, MessageSizeTooLargeError

from outbox.brokers.base import OutgoingRecord
from outbox.brokers.kafka.client import describe
from outbox.brokers.kafka.ways import Writer, writer


@dataclass(slots=True)
class Entry:
    """One record and what is known of it; with neither flag nor text it is on its way."""

    record: OutgoingRecord
    future: Any = None
    acknowledged: bool = False
    refusal: str = ""
    trouble: str = ""

    @property
    def is_open(self) -> bool:
        return not (self.acknowledged or self.refusal or self.trouble)

    def look(self) -> BaseException | None:
        """Take over what the client says; return its error, which is not yet a verdict."""
        if self.is_open and self.future is not None and self.future.is_done:
            if self.future.exception is not None:
                error: BaseException = self.future.exception
                return error
            self.acknowledged = True
        return None


class SentBatch:
    """The records of one batch that went through one client. ``trouble`` says why a record is unanswered."""

    def __init__(self, records: Sequence[OutgoingRecord], *, trouble: Callable[[BaseException], str]) -> None:
        self.entries = [Entry(record) for record in records]
        self._trouble = trouble

    def wait(self, deadline: float) -> None:
        """Wait until the client has answered for every record, or ``deadline``."""
        for entry in self.entries:
            future = entry.future
            if future is None or future.is_done:
                continue
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            try:
                future.get(timeout=remaining_s)
            except KafkaError:
                continue  # looked at when all are there

    def look(self) -> list[BaseException]:
        """Take over the client's answers; return its errors."""
        return [error for entry in self.entries if (error := entry.look()) is not None]

    @property
    def is_finished(self) -> bool:
        self.look()
        return not any(entry.is_open for entry in self.entries)

    def give_up(self, reason: str) -> None:
        """Have what is still open sent again by the caller; the client's own error says more than ``reason``."""
        for entry in self.entries:
            error = entry.look()
            if entry.is_open:
                entry.trouble = reason if error is None else self._trouble(error)


@dataclass(slots=True)
class Link:
    """One client from its making to its end, with the batches that went through it."""

    client: Any
    batches: deque[SentBatch] = field(default_factory=deque)
    known_topics: set[str] = field(default_factory=set)
    _writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        self._writer = writer(self.client)

    def missing(self, topics: Iterable[str]) -> dict[str, str]:
        """Return the topics that cannot be sent to now, and why. Waits for the brokers' answer, within a bound."""
        found: dict[str, str] = {}
        for topic in sorted(set(topics) - self.known_topics):
            try:
                self.client.partitions_for(topic)
            except KafkaError as error:
                found[topic] = _no_topic(topic, error)
            else:
                self.known_topics.add(topic)
        return found

    def hand_over(self, entries: Iterable[Entry], missing: dict[str, str]) -> None:
        """Give ``entries`` to the client; note those that it does not take."""
        with self._writer.batch():
            for entry in entries:
                topic = entry.record.topic
                if topic in missing:
                    entry.trouble = missing[topic]
                    continue
                try:
                    entry.future = self._send(entry.record)
                except (MessageSizeTooLargeError, TypeError, UnicodeError) as error:
                    entry.refusal = refusal_of(entry.record, error)
                except (KafkaError, ValueError) as error:
                    self.known_topics.discard(topic)
                    entry.trouble = missing[topic] = _no_topic(topic, error)

    def forget_finished(self) -> None:
        """Drop the oldest batches that are answered for."""
        while self.batches and self.batches[0].is_finished:
            self.batches.popleft()

    def _send(self, record: OutgoingRecord) -> Any:
        # Brokers refuse records from the future (``message.timestamp.after.max.ms``, an hour), and by the clock of this
        # process a relay on a machine whose clock is wrong could send nothing, and nobody would take over from it.
        timestamp_ms = None if record.sent_at is None else int(record.sent_at.timestamp() * 1000)
        return self._writer.write(
            record.topic,
            key=record.key.encode(),
            value=record.value,
            headers=record.headers,
            timestamp_ms=timestamp_ms,
        )


def refusal_of(record: OutgoingRecord, error: BaseException) -> str:
    """Return why the brokers will never take ``record``."""
    return f"{describe(error)} (value of {len(record.value):,} bytes, topic {record.topic!r})"


def _no_topic(topic: str, error: BaseException) -> str:
    return f"no partitions of topic {topic!r} are known: it does not exist, or the brokers are away ({describe(error)})"
