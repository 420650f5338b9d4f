"""The events of the `probe` service. Its processes import this, tests do not: it would declare the events there too."""

from __future__ import annotations

from typing import Literal

import msgspec

from outbox import OnDead, event
from tests.acceptance.probe.names import Act

Verdict = Literal["ok", "poison", "discard", "retry"]


class ProbeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What the handler is to do, beside writing down its effect."""

    key: str
    n: int = 0
    fail_times: int = 0
    """The first so many attempts raise."""
    sleep_ms: int = 0
    """How long the handler takes."""
    verdict: Verdict = "ok"
    """``poison`` raises at every attempt, ``discard`` and ``retry`` raise what the library gives for it."""
    every: int = 1
    """What the three above say holds for events whose ``n`` this divides; the others are simply handled."""
    filler: str = ""


@event("probe.step", service="probe", key="key")
class Step(ProbeEvent, frozen=True, kw_only=True):
    """Handled one by one."""


@event("probe.bulk", service="probe", key="key")
class Bulk(ProbeEvent, frozen=True, kw_only=True):
    """Handled as a list."""


@event("probe.parking", service="probe", key="key", on_dead=OnDead.PARK)
class Parking(ProbeEvent, frozen=True, kw_only=True):
    """Handled one by one; when one dies, the later ones of its key wait for a person."""


class FaultyEvent(ProbeEvent, frozen=True, kw_only=True):
    """What a handler is to do wrong; see `faults`."""

    fault: str
    times: int = 1
    """How often it does so; afterwards the event is simply handled."""
    target: int = 0
    """The business row that the handler wants to write, by its id."""


@event("probe.faulty", service="probe", key="key")
class Faulty(FaultyEvent, frozen=True, kw_only=True):
    """Handled one by one."""


@event("probe.faulty.list", service="probe", key="key")
class FaultyList(FaultyEvent, frozen=True, kw_only=True):
    """Handled as a list."""


@event("probe.misbehaving", service="probe", key="key")
class Misbehaving(ProbeEvent, frozen=True, kw_only=True):
    """Does what no handler should do to its process, its thread or its connection, and writes its effect if it can."""

    act: Act
    times: int = 0
    """It misbehaves at the first so many attempts; 0: at each."""
    row: int = 0
    """The id of the business row that it writes before it acts; 0: none."""


KINDS: dict[str, type[ProbeEvent]] = {
    "step": Step,
    "bulk": Bulk,
    "parking": Parking,
    "faulty": Faulty,
    "faulty-list": FaultyList,
    "misbehaving": Misbehaving,
}
