"""What the `probe` service does with its events."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from outbox import Delivery, Discard, Retry, handles
from tests.acceptance.probe.acts import misbehave as act
from tests.acceptance.probe.events import Bulk, Faulty, FaultyEvent, FaultyList, Misbehaving, Parking, ProbeEvent, Step
from tests.acceptance.probe.faults import misbehave
from tests.acceptance.probe.models import Effect
from tests.acceptance.probe.trace import note


@handles(Step)
def take_step(delivery: Delivery[Step]) -> None:
    """Write down the effect."""
    _run(delivery).save(using=delivery.database)


@handles(Parking)
def take_parking(delivery: Delivery[Parking]) -> None:
    """Write down the effect."""
    _run(delivery).save(using=delivery.database)


@handles(Misbehaving)
def take_misbehaving(delivery: Delivery[Misbehaving]) -> None:
    """Misbehave, and write down the effect."""
    _run(delivery).save(using=delivery.database)


@handles(Bulk, batch=True)
def take_bulk(deliveries: list[Delivery[Bulk]]) -> None:
    """Write down the effects, in one statement."""
    Effect.objects.using(deliveries[0].database).bulk_create([_run(delivery) for delivery in deliveries])


@handles(Faulty)
def take_faulty(delivery: Delivery[Faulty]) -> Any:
    """Write down the effect, and do wrong what the event says."""
    return misbehave(delivery, _run(delivery))


@handles(FaultyList, batch=True)
def take_faulty_list(deliveries: list[Delivery[FaultyList]]) -> Any:
    """Write down the effects, and do wrong what the events say."""
    answers = [misbehave(delivery, _run(delivery)) for delivery in deliveries]
    return next((answer for answer in answers if answer is not None), None)


def _run(delivery: Delivery[Any]) -> Effect:
    payload: ProbeEvent = delivery.payload
    note("begin", delivery.outbox_id, delivery.attempt)
    if payload.n % payload.every == 0 and not isinstance(payload, FaultyEvent):
        _do_as_told(payload, delivery.attempt)
    if isinstance(payload, Misbehaving):
        act(delivery)
    note("end", delivery.outbox_id, delivery.attempt)
    return Effect(
        outbox_id=delivery.outbox_id,
        event_id=delivery.event_id,
        message_key=delivery.message_key,
        n=payload.n,
        attempt=delivery.attempt,
        worker_pid=os.getpid(),
    )


def _do_as_told(payload: ProbeEvent, attempt: int) -> None:
    if payload.sleep_ms:
        time.sleep(payload.sleep_ms / 1000)
    if attempt <= payload.fail_times:
        raise RuntimeError(f"attempt {attempt} of {payload.fail_times} that fail")
    if payload.verdict == "poison":
        raise RuntimeError("it never works")
    if payload.verdict == "discard":
        raise Discard("nobody wants it")
    if payload.verdict == "retry" and attempt == 1:
        raise Retry("not yet", after=timedelta(milliseconds=100))
