"""What a relay has in flight: batches that the broker was given and has not answered for, and what becomes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from outbox import signals
from outbox.brokers.base import Broker, OutgoingRecord, PendingSend, Producer
from outbox.conf import RelayOptions
from outbox.exceptions import BrokerUnavailableError, EnvelopeError
from outbox.log_text import get_logger
from outbox.relay.confirmations import Hand, PublishedMarks
from outbox.relay.outgoing import OutgoingRecords
from outbox.relay.redelivery import pause_before_redelivery
from outbox.storage.dialects import from_db
from outbox.storage.relay_rows import RelayRows
from outbox.storage.rows import Claim, Counts, Due, Failure

logger = get_logger(__name__)


@dataclass(slots=True)
class RelayTotals:
    """What a relay has done since it started."""

    published: int = 0
    dead: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that the broker has not answered for."""

    send: PendingSend
    event_types: dict[int, str]
    claimed_at: Any
    pauses: dict[int, timedelta]
    """How long those rows may stay published that are sent again."""
    counts: Counts
    """Of those rows that were put back before the claim."""


class InFlightBatches:
    """Sends the due rows of one service, waits for the broker's answers and writes them down, in that order.

    ``parks_key`` says whether the death of an event type holds back its key. ``hand`` does the marking.
    ``on_answer`` is called for each batch that was answered for, which may take its time.
    """

    def __init__(
        self,
        repository: RelayRows,
        broker: Broker,
        options: RelayOptions,
        *,
        client_id: str,
        parks_key: Callable[[str], bool],
        hand: Hand,
        totals: RelayTotals,
        on_answer: Callable[[], object],
    ) -> None:
        self.broker_answers = True
        """The broker has answered a batch since it was unavailable last: that it takes one says nothing."""
        self._repository = repository
        self._service = repository.route.service
        self._broker = broker
        self._client_id = client_id
        self._parks_key = parks_key
        self._totals = totals
        self._on_answer = on_answer
        self._send_timeout = timedelta(seconds=options.send_timeout_seconds)
        self._redeliver_after = timedelta(seconds=options.redeliver_after_seconds)
        self._outgoing = OutgoingRecords(repository)
        self._marks = PublishedMarks(repository, redeliver_after=self._redeliver_after, hand=hand)
        self._batches: deque[_Batch] = deque()
        self._producer: Producer | None = None

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def unmarked(self) -> PublishedMarks:
        """Return the rows that the broker acknowledged and that are not marked yet: they must not be sent again."""
        return self._marks

    def prepare(self) -> None:
        """Read, once, what each record needs to know of the database.

        :raises DatabaseError: the database is unavailable.
        """
        self._outgoing.prepare()

    def send(self, claim: Claim) -> bool:
        """Send the rows of ``claim`` without waiting for the answer; say whether there were any to send.

        Those that cannot be read die here, with the reason.

        :raises BrokerUnavailableError: nothing of the batch was sent.
        :raises DatabaseError: the database is unavailable.
        """
        rows = [row for row in claim.rows if row.id not in self._marks]
        records = self._records(rows, claim.claimed_at)
        if records:
            pauses = {
                row.id: pause_before_redelivery(row.published_for, first=self._redeliver_after)
                for row in rows
                if row.published_for is not None
            }
            event_types = {row.id: row.event_type for row in rows}
            sent = self._open_producer().send(records)
            self._batches.append(_Batch(sent, event_types, claim.claimed_at, pauses, claim.counts))
        return bool(rows)

    def settle_down_to(self, count: int) -> None:
        """Settle the oldest batches until at most ``count`` are in flight.

        :raises BrokerUnavailableError: some records have no answer; they stay pending and are sent again.
        :raises DatabaseError: the database is unavailable.
        """
        while len(self._batches) > count:
            self._settle(self._batches.popleft())

    def settle_all(self) -> None:
        """Settle every batch, and mark what a consumer held when it was to be marked.

        :raises BrokerUnavailableError: some records have no answer; they stay pending and are sent again.
        :raises DatabaseError: the database is unavailable.
        """
        self.settle_down_to(0)
        self._marks.try_again()

    def discard(self) -> None:
        """Forget the batches without an answer: their rows are claimed and sent again."""
        self._batches.clear()

    def close(self) -> None:
        """Give up the marks and the producer."""
        self._marks.close()
        self.close_producer()

    def close_producer(self) -> None:
        """Close the producer; the next batch opens another one."""
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.close()
        except Exception:  # what it meets with must not end the relay, which goes on with another one
            logger.warning("relay of %s: its producer could not be closed", self._service, exc_info=True)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _records(self, rows: Sequence[Due], claimed_at: Any) -> list[OutgoingRecord]:
        """Encode ``rows``; those that cannot be read die here, with the reason."""
        records = []
        sent_at = from_db(claimed_at) if rows else None
        for row in rows:
            try:
                records.append(self._outgoing.of(row, sent_at))
            except EnvelopeError as error:
                failure = Failure(f"EnvelopeError: {error}", "EnvelopeError")
                self._bury(row.id, row.event_type, failure, claimed_at, {row.id: row.counts})
        return records

    def _settle(self, batch: _Batch) -> None:
        """Wait for the broker's answers and write them down."""
        report = batch.send.report(self._send_timeout)
        self._on_answer()
        self.broker_answers = self.broker_answers or bool(report.acknowledged or report.refused)
        self._marks.add(report.acknowledged, claimed_at=batch.claimed_at, pauses=batch.pauses, counts=batch.counts)
        # Counted by the broker's word: a fast consumer may have finished a row before it is marked.
        self._totals.published += len(report.acknowledged)
        for refusal in report.refused:
            self._bury(
                refusal.outbox_id,
                batch.event_types[refusal.outbox_id],
                Failure(f"the broker refused the record: {refusal.reason}", "RecordRefused"),
                batch.claimed_at,
                batch.counts,
            )
        if report.acknowledged:
            signals.relayed.send_robust(self._service, count=len(report.acknowledged))
        if report.unanswered:
            raise BrokerUnavailableError(report.outage)

    def _bury(self, row_id: int, event_type: str, failure: Failure, claimed_at: Any, counts: Counts) -> None:
        """Make a row dead; one that a consumer holds, by an older record of it, is left to the next claim."""
        parks_key = self._parks_key(event_type)
        if self._repository.bury_refused(
            row_id, failure=failure, parks_key=parks_key, claimed_at=claimed_at, counts=counts
        ):
            self._totals.dead += 1
            logger.error("relay of %s: row %s is dead: %s", self._service, row_id, failure.reason)
            signals.refused.send_robust(self._service, outbox_id=row_id, reason=failure.reason)

    def _open_producer(self) -> Producer:
        if self._producer is None:
            self._producer = self._broker.producer(client_id=self._client_id)
        return self._producer
