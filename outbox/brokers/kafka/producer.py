"""The Kafka producer: acks from every in-sync replica, idempotent, one record's fault kept apart from an outage.

What the client of kafka-python 3.0 does on its own, and what is done about it here:

* One record that the broker refuses makes an idempotent client unusable for good, and it fails every record in its
  memory, also of other topics, with that record's error. So nothing is believed of such a failure: the client is
  thrown away, and every record without an acknowledgement gets a second look, each in a batch of its own through a
  client that is not idempotent, in the order in which they were handed over. What fails there is the record's own.
* Its memory has no bound. A record is given up after ``DELIVERY_TIMEOUT_MS``; a client that has not answered when
  ``report`` runs out of time is thrown away with what it holds. So the memory is bounded by what the caller has in
  flight.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    RetriableError,
)

from outbox.brokers.base import OutgoingRecord, Refusal, SendReport
from outbox.brokers.kafka.client import ClientFactory, abandon, describe
from outbox.brokers.kafka.private import close_client
from outbox.brokers.kafka.ways import Writer, writer
from outbox.exceptions import BrokerError, BrokerUnavailableError, ConfigurationError

BATCH_BYTES: Final = 512 * 1024
"""Measured with records of 1 kB: 64 kB 18k/s, 256 kB 22k/s, 512 kB 25k/s; half of the brokers' default limit."""

LINGER_MS: Final = 5

DELIVERY_TIMEOUT_MS: Final = 25_000
"""Below the 30 s for which a relay waits by default, so that the client gives up first and stays usable."""

_RECORD_AT_FAULT: Final = (CorruptRecordError, InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(slots=True)
class _Entry:
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


@dataclass(slots=True)
class _Link:
    """One client from its making to its end, with the batches that went through it."""

    client: Any
    batches: deque[_Batch] = field(default_factory=deque)
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

    def hand_over(self, entries: Iterable[_Entry], missing: dict[str, str]) -> None:
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
                    entry.refusal = _refusal(entry.record, error)
                except (KafkaError, ValueError) as error:
                    self.known_topics.discard(topic)
                    entry.trouble = missing[topic] = _no_topic(topic, error)

    def forget_finished(self) -> None:
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


class _Batch:
    """A ``PendingSend``."""

    def __init__(self, producer: KafkaRecordProducer, link: _Link, records: Sequence[OutgoingRecord]) -> None:
        self.link = link
        self.entries = [_Entry(record) for record in records]
        self._producer = producer

    def report(self, timeout: timedelta) -> SendReport:
        deadline = time.monotonic() + timeout.total_seconds()
        self.wait(deadline)
        self._producer.conclude(self, deadline, timeout)
        # An acknowledgement may come in while the record is given up: it counts.
        unanswered = [entry for entry in self.entries if entry.trouble and not entry.acknowledged]
        return SendReport(
            acknowledged=tuple(entry.record.outbox_id for entry in self.entries if entry.acknowledged),
            refused=tuple(Refusal(entry.record.outbox_id, entry.refusal) for entry in self.entries if entry.refusal),
            unanswered=tuple(entry.record.outbox_id for entry in unanswered),
            outage="; ".join(dict.fromkeys(entry.trouble for entry in unanswered)),
        )

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
                entry.trouble = reason if error is None else self._producer.trouble(error)


class KafkaRecordProducer:
    """A ``Producer``. Its client is replaced when it fails; threads share it."""

    def __init__(self, clients: ClientFactory, *, client_id: str) -> None:
        self._clients = clients
        self._client_id = client_id
        self._where = f"Kafka at {clients.servers}"
        self._lock = threading.Lock()
        """Held to connect, to hand over and to settle a failed client: so records keep their order through all that."""
        self._link: _Link | None = None
        self._failure: tuple[float, BrokerUnavailableError] | None = None
        self._closed = False
        self._live_link()

    def send(self, records: Sequence[OutgoingRecord]) -> _Batch:
        topics = {record.topic for record in records}
        while True:
            link = self._live_link()
            missing = link.missing(topics)
            if missing and len(missing) == len(topics):
                raise self._clients.unavailable("cannot send", "; ".join(missing.values()))
            with self._lock:
                if link is not self._link:
                    continue  # it failed meanwhile
                batch = _Batch(self, link, records)
                link.forget_finished()
                link.batches.append(batch)
                link.hand_over(batch.entries, missing)
                return batch

    def conclude(self, batch: _Batch, deadline: float, timeout: timedelta) -> None:
        """Bring every record of ``batch`` to a verdict, and what a failed client had in hand besides it."""
        if batch.is_finished:
            return
        with self._lock:
            errors = batch.look()
            if batch.link is self._link:
                if any(not isinstance(error, RetriableError) for error in errors):
                    self._second_look(batch.link, deadline)
                elif any(entry.is_open and not entry.future.is_done for entry in batch.entries):
                    self._drop(batch.link, f"{self._where}: no answer within {timeout}")
            batch.give_up(f"{self._where}: the connection was given up")

    def trouble(self, error: BaseException) -> str:
        """Return why a record is unanswered."""
        return f"{self._where}: {self._clients.why(error)}"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is None:
            return
        timeout_s = self._clients.options.request_timeout_seconds
        try:
            close_client(link.client, lambda: link.client.close(timeout=timeout_s))
        except KafkaError:
            abandon(link.client, patience_seconds=timeout_s)

    # --- the client ----------------------------------------------------------------------------------------------

    def _live_link(self) -> _Link:
        asked_at = time.monotonic()
        with self._lock:
            if self._closed:
                raise BrokerError("the producer is closed")
            if self._link is not None:
                return self._link
            if self._failure is not None and self._failure[0] >= asked_at:
                raise self._failure[1]  # another thread has just tried while this one waited
            try:
                self._link = _Link(self._connect())
            except BrokerUnavailableError as error:
                self._failure = (time.monotonic(), error)
                raise
            return self._link

    def _connect(self, **fixed: Any) -> Any:
        defaults = {
            "enable_idempotence": True,
            "batch_size": BATCH_BYTES,
            "linger_ms": LINGER_MS,
            "delivery_timeout_ms": max(DELIVERY_TIMEOUT_MS, self._clients.request_timeout_ms + 1_000),
            "max_block_ms": self._clients.request_timeout_ms,
            "metrics_enabled": False,
        }
        return self._clients.producer(defaults, client_id=self._client_id, fixed={"acks": "all", **fixed})

    def _drop(self, link: _Link, reason: str) -> None:
        """Throw the client away; what it has not answered for is sent again by the caller."""
        self._link = None
        for batch in link.batches:
            batch.give_up(reason)
        abandon(link.client, patience_seconds=self._clients.options.request_timeout_seconds)

    # --- the second look -----------------------------------------------------------------------------------------

    def _second_look(self, link: _Link, deadline: float) -> None:
        """Find out, record by record, what a client that failed for good could not say."""
        self._link = None
        abandon(link.client, patience_seconds=self._clients.options.request_timeout_seconds)
        for batch in link.batches:
            batch.look()
        entries = [entry for batch in link.batches for entry in batch.entries if entry.is_open]
        try:
            client = self._connect(
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                batch_size=0,
                linger_ms=0,
            )
        except (BrokerUnavailableError, ConfigurationError) as error:
            for entry in entries:
                entry.trouble = str(error)
            return
        judge = _Link(client)
        judge.hand_over(entries, judge.missing({entry.record.topic for entry in entries}))
        for entry in entries:
            self._judge(entry, deadline)
        abandon(client, patience_seconds=self._clients.options.request_timeout_seconds)

    def _judge(self, entry: _Entry, deadline: float) -> None:
        if not entry.is_open:
            return
        try:
            entry.future.get(timeout=max(0.0, deadline - time.monotonic()))
        except _RECORD_AT_FAULT as error:
            entry.refusal = _refusal(entry.record, error)
        except KafkaError as error:
            entry.trouble = self.trouble(error)
        else:
            entry.acknowledged = True


def _refusal(record: OutgoingRecord, error: BaseException) -> str:
    return f"{describe(error)} (value of {len(record.value):,} bytes, topic {record.topic!r})"


def _no_topic(topic: str, error: BaseException) -> str:
    return f"no partitions of topic {topic!r} are known: it does not exist, or the brokers are away ({describe(error)})"
