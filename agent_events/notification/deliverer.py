"""The delivery loop: claims records that are due, posts them, writes down what came of it.

The database and the network never wait for each other: a claim is a transaction of its own, requests go out when it is
committed, and each result is one guarded update. The requests of a batch go out at the same time on threads that do not
touch the database, so one slow webhook holds up nobody for longer than one time-out.
"""

from __future__ import annotations

import logging
import queue
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from agent_events.notification.channels import ChannelStore
from agent_events.notification.lifecycle import Status
from agent_events.notification.policy import Answer, Outcome, Verdict, judge
from agent_events.notification.preparation import Preparation, Request
from agent_events.notification.records import Claimed, Exchange, NotificationRecords
from agent_events.notification.sender import WebhookSender
from outbox.exceptions import OutboxError
from outbox.log_text import get_logger
from outbox.workers import ConnectionBackoff, StopFlag, WorkerLoop, is_fault

logger = get_logger(__name__)


class OpenTransactionError(OutboxError):
    """A deliverer was called inside a database transaction, which would stay open while a request is on its way."""

    def __init__(self, alias: str) -> None:
        super().__init__(f"a transaction is open on database alias {alias!r}: deliver outside of it")


@dataclass(slots=True)
class DeliveryTotals:
    """What a deliverer has done since it started."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    skipped: int = 0
    lost: int = 0
    """Results that came after somebody else had taken the record over."""

    def count(self, status: Status | None) -> None:
        """Note that a record went to ``status``; None: its lease was taken over."""
        name = "lost" if status is None else status.value
        setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How a deliverer works. ``lease`` has to be well above the time that a request may take."""

    batch_size: int = 10
    poll_interval: timedelta = timedelta(seconds=2)
    lease: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class _Job:
    """A claimed record on its way, and the lease that it is held under."""

    record: Claimed
    token: str
    request: Request
    begin_before: float


@dataclass(frozen=True, slots=True)
class _Result:
    """What is to be written down; without a verdict nothing was sent, and the record is given back."""

    record: Claimed
    token: str
    verdict: Verdict | None
    exchange: Exchange = field(default_factory=Exchange)


class Deliverer:
    """An object that a test can hold: stores, sender and clocks are passed in.

    ``clock`` gives monotonic seconds, ``now`` the time that a request says it was sent at.
    """

    def __init__(
        self,
        *,
        records: NotificationRecords,
        channels: ChannelStore,
        sender: WebhookSender,
        preparation: Preparation,
        options: DeliveryOptions,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self.totals = DeliveryTotals()
        self._records = records
        self._channels = channels
        self._sender = sender
        self._preparation = preparation
        self._options = options
        self._clock = clock
        self._now = now
        self._unsent: set[str] = set()
        self._finished: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._in_hand: _Result | None = None
        self._backoff = ConnectionBackoff("notification", "delivery")

    def run(self, stop: StopFlag, *, once: bool = False) -> DeliveryTotals:
        """Work until ``stop`` is set; with ``once``, until nothing more is due. An outage only makes it wait.

        :raises OpenTransactionError: the caller holds a transaction open.
        :raises Exception: a fault, with ``once``; see ``WorkerLoop``.
        """
        _refuse_open_transactions()
        self.loop(once=once).run(stop)
        self._settle_quietly()
        return self.totals

    def loop(self, *, once: bool = False) -> WorkerLoop:
        """Return the loop of this deliverer's steps."""
        return WorkerLoop(
            step=self.step,
            using=self._records.using,
            backoff=self._backoff,
            pause=lambda worked: timedelta(0) if worked else self._options.poll_interval,
            recover=self._recover,
            is_drained=(lambda: True) if once else None,
        )

    def step(self) -> bool:
        """Deliver the next batch; say whether there was any.

        :raises OpenTransactionError: the caller holds a transaction open.
        :raises DatabaseError: the database is away. What was sent is kept and written down by the next step.
        """
        _refuse_open_transactions()
        self._settle_finished()
        self._release_unsent()
        jobs, results = self._claim()
        self._carry_out(jobs, results)
        return bool(jobs or results)

    # --- before the requests -------------------------------------------------------------------------------------

    def _claim(self) -> tuple[list[_Job], list[_Result]]:
        """Claim a batch; return what is to be sent, and what came to an end without."""
        token = uuid.uuid4().hex
        begin_before = self._clock() + self._options.lease.total_seconds() / 2
        # Should the database go away in here, the claim may stand or not: it is given back before the next one.
        self._unsent.add(token)
        claimed = self._records.claim(limit=self._options.batch_size, lease=self._options.lease, token=token)
        channels = self._channels.of_users({record.user_id for record in claimed}) if claimed else {}
        jobs: list[_Job] = []
        results: list[_Result] = []
        for record in claimed:
            made = self._preparation.request(record, channels.get(record.user_id), sent_at=self._now())
            if isinstance(made, Verdict):
                results.append(_Result(record, token, made))
            else:
                jobs.append(_Job(record, token, made, begin_before))
        self._unsent.discard(token)
        return jobs, results

    def _release_unsent(self) -> None:
        for token in list(self._unsent):
            self._records.release(token=token)
            self._unsent.discard(token)

    # --- the requests: on threads of their own, without the database ---------------------------------------------

    def _carry_out(self, jobs: Sequence[_Job], results: Sequence[_Result]) -> None:
        """Send ``jobs`` at the same time; write down ``results`` and what comes of the jobs, as it comes."""
        with ThreadPoolExecutor(max_workers=max(len(jobs), 1), thread_name_prefix="notification") as pool:
            for job in jobs:
                pool.submit(self._send, job)
            for result in results:
                self._finished.put(result)
            for _ in range(len(jobs) + len(results)):
                self._in_hand = self._finished.get()
                self._settle_in_hand()

    def _send(self, job: _Job) -> None:
        """Send one request and hand its result over, whatever happens."""
        if self._clock() >= job.begin_before:
            # The process slept: somebody else may be sending this record by now.
            self._finished.put(_Result(job.record, job.token, None))
            return
        try:
            verdict, exchange = self._exchange(job.request)
        except Exception as error:  # noqa: BLE001 - it ends up on the record; a traceback might show secrets
            reason = job.request.redact(f"{type(error).__name__}: {error}")
            verdict, exchange = Verdict(Outcome.RETRY, "error", reason), Exchange()
        self._finished.put(_Result(job.record, job.token, verdict, exchange))

    def _exchange(self, request: Request) -> tuple[Verdict, Exchange]:
        """Return what came of ``request``, and what is kept of it: both without secrets."""
        stored = request.stored()
        answer = self._sender.post(request.webhook, body=request.body, token=request.token)
        verdict = judge(answer)
        text = request.redact(answer.body.decode("utf-8", "replace")) if isinstance(answer, Answer) else None
        return replace(verdict, reason=request.redact(verdict.reason)), Exchange(stored, text)

    # --- after the requests --------------------------------------------------------------------------------------

    def _settle_finished(self) -> None:
        """Write down every result that there is, also those from before an outage."""
        while self._in_hand is not None or not self._finished.empty():
            if self._in_hand is None:
                self._in_hand = self._finished.get()
            self._settle_in_hand()

    def _settle_in_hand(self) -> None:
        result = self._in_hand
        if result is None:
            return
        record, verdict = result.record, result.verdict
        if verdict is None:
            self._records.release(token=result.token, record_id=record.id)
            self._in_hand = None
            return
        status = self._records.settle(
            record.id, token=result.token, attempt=record.attempt, verdict=verdict, exchange=result.exchange
        )
        self._in_hand = None
        self.totals.count(status)
        self._tell(record, verdict, status)

    def _tell(self, record: Claimed, verdict: Verdict, status: Status | None) -> None:
        if status is None:
            logger.warning(
                "notification %d: a result came after its lease was taken over and is dropped: %s %s",
                record.id,
                verdict.outcome.value,
                verdict.code,
            )
            return
        level = logging.INFO if status in {Status.SENT, Status.SKIPPED} else logging.WARNING
        logger.log(
            level,
            "notification %d of user %d: %s at attempt %d: %s %s",
            record.id,
            record.user_id,
            status.value,
            record.attempt,
            verdict.code,
            verdict.reason,
        )

    def _recover(self, error: Exception) -> None:
        """Drop the result that a fault came with: it would come again at every step, and hold up all others.

        What it is of is taken up again when its lease runs out.
        """
        result = self._in_hand
        if result is not None and is_fault(error, self._records.using):
            logger.error("notification %d: its result cannot be written and is dropped: %s", result.record.id, error)
            self._in_hand = None

    def _settle_quietly(self) -> None:
        """Write down at the end what an outage held up; what cannot be written is taken up when its lease runs out."""
        try:
            self._settle_finished()
            self._release_unsent()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("delivery of notification: leases run out by themselves: %s", error)


def _refuse_open_transactions() -> None:
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            raise OpenTransactionError(connection.alias)
