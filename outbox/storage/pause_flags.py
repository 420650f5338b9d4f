"""What a person has set of a service: its relay or its consumer is paused, why, by whom and since when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from outbox.fields import UtcNow, storable
from outbox.models import ServiceSwitch

REASON_MAX_LENGTH: Final = 500
"""What the column holds; the journal has a row for each event that was acted on, and is to be no longer."""


@dataclass(frozen=True, slots=True)
class Switches:
    """A person's word on a service."""

    relay_paused: bool = False
    consumer_paused: bool = False


def switches_of(service: str, using: str) -> Switches:
    """Return what is set of ``service`` in the database ``using``."""
    columns = ServiceSwitch.objects.using(using).filter(pk=service).values_list("relay_paused", "consumer_paused")
    found = columns.first()
    return Switches(*found) if found else Switches()


def switch_row(service: str, using: str) -> ServiceSwitch | None:
    """Return the whole row, also with who set it and why; None: nobody ever set anything."""
    return ServiceSwitch.objects.using(using).filter(pk=service).first()


def set_paused(service: str, using: str, *, column: str, paused: bool, reason: str, by: str) -> bool:
    """Set or clear one flag; return False when it was so already. ``column`` is that of the flag."""
    switches = ServiceSwitch.objects.using(using)
    switches.get_or_create(pk=service)
    values: dict[str, Any] = {
        column: paused,
        "reason": storable(reason, REASON_MAX_LENGTH),
        "changed_by": by[:150],
        "changed_at": UtcNow(),
    }
    return bool(switches.filter(pk=service, **{column: not paused}).update(**values))
