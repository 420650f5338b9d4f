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
from collections.abc import Sequence
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
from outbox.brokers.kafka.client import ClientFactory, abandon
from outbox.brokers.kafka.private import close_client
from outbox.brokers.kafka.producer_link import Entry, Link, SentBatch, refusal_of
from outbox.exceptions import BrokerError, BrokerUnavailableError, ConfigurationError

BATCH_BYTES: Final = 512 * 1024
"""Measured with records of 1 kB: 64 kB 18k/s, 256 kB 22k/s, 512 kB 25k/s; half of the brokers' default limit."""

LINGER_MS: Final = 5

DELIVERY_TIMEOUT_MS: Final = 25_000
"""Below the 30 s for which a relay waits by default, so that the client gives up first and stays usable."""

_RECORD_AT_FAULT: Final = (CorruptRecordError, InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError)


class _Batch(SentBatch):
    """A ``PendingSend``."""

    def __init__(self, producer: KafkaRecordProducer, link: Link, records: Sequence[OutgoingRecord]) -> None:
        super().__init__(records, trouble=producer.trouble)
        self.link = link
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


class KafkaRecordProducer:
    """A ``Producer``. Its client is replaced when it fails; threads share it."""

    def __init__(self, clients: ClientFactory, *, client_id: str) -> None:
        self._clients = clients
        self._client_id = client_id
        self._where = f"Kafka at {clients.servers}"
        self._lock = threading.Lock()
        """Held to connect, to hand over and to settle a failed client: so records keep their order through all that."""
        self._link: Link | None = None
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

    def _live_link(self) -> Link:
        asked_at = time.monotonic()
        with self._lock:
            if self._closed:
                raise BrokerError("the producer is closed")
            if self._link is not None:
                return self._link
            if self._failure is not None and self._failure[0] >= asked_at:
                raise self._failure[1]  # another thread has just tried while this one waited
            try:
                self._link = Link(self._connect())
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

    def _drop(self, link: Link, reason: str) -> None:
        """Throw the client away; what it has not answered for is sent again by the caller."""
        self._link = None
        for batch in link.batches:
            batch.give_up(reason)
        abandon(link.client, patience_seconds=self._clients.options.request_timeout_seconds)

    # --- the second look -----------------------------------------------------------------------------------------

    def _second_look(self, link: Link, deadline: float) -> None:
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
        judge = Link(client)
        judge.hand_over(entries, judge.missing({entry.record.topic for entry in entries}))
        for entry in entries:
            self._judge(entry, deadline)
        abandon(client, patience_seconds=self._clients.options.request_timeout_seconds)

    def _judge(self, entry: Entry, deadline: float) -> None:
        if not entry.is_open:
            return
        try:
            entry.future.get(timeout=max(0.0, deadline - time.monotonic()))
        except _RECORD_AT_FAULT as error:
            entry.refusal = refusal_of(entry.record, error)
        except KafkaError as error:
            entry.trouble = self.trouble(error)
        else:
            entry.acknowledged = True
