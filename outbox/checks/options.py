"""``settings.OUTBOX`` itself: values that no single key can be blamed for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.utils.module_loading import import_string

from outbox.conf import OutboxSettings, outbox_settings
from outbox.declarations.contracts import OnDead, contracts
from outbox.exceptions import ConfigurationError

SETTING: Final = "settings.OUTBOX"
_TAKEOVER_SECONDS: Final = 10.0
"""Within this time a crashed worker's share has been taken over."""


def configured() -> OutboxSettings | None:
    """Return the settings, None when they are invalid: ``check_options`` says so, once."""
    try:
        return outbox_settings()
    except ConfigurationError:
        return None


def check_options() -> list[CheckMessage]:
    """Check that the settings can be read and agree with each other."""
    try:
        options = outbox_settings()
    except ConfigurationError as error:
        return [
            Error(
                str(error),
                hint="Correct the key that the message names; docs/configuration.md lists all keys and their types.",
                obj=SETTING,
                id="outbox.E001",
            )
        ]
    parts: tuple[Callable[[OutboxSettings], Iterator[CheckMessage]], ...] = (_leases, _sizes, _retries, _traceparent)
    return [message for part in parts for message in part(options)]


def _leases(options: OutboxSettings) -> Iterator[CheckMessage]:
    ttl_s, heartbeat_s = options.leases.ttl_seconds, options.leases.heartbeat_seconds
    if heartbeat_s * 2 > ttl_s:
        yield Error(
            f"LEASES: a heartbeat every {heartbeat_s:g} s is too slow for leases of {ttl_s:g} s: one late heartbeat "
            f"and a worker that is alive loses its shards.",
            hint="Set LEASES['HEARTBEAT_SECONDS'] to a third of LEASES['TTL_SECONDS'], half of it at the most.",
            obj=SETTING,
            id="outbox.E002",
        )
    if ttl_s + heartbeat_s > _TAKEOVER_SECONDS:
        yield Error(
            f"LEASES: a crashed worker's shards would stand still for up to {ttl_s + heartbeat_s:g} s "
            f"(TTL_SECONDS + HEARTBEAT_SECONDS); {_TAKEOVER_SECONDS:g} s are promised.",
            hint="Shorten LEASES['TTL_SECONDS'] (default 6) or LEASES['HEARTBEAT_SECONDS'] (default 2).",
            obj=SETTING,
            id="outbox.E003",
        )


def _sizes(options: OutboxSettings) -> Iterator[CheckMessage]:
    if options.reference_bytes > options.max_payload_bytes:
        yield CheckWarning(
            f"REFERENCE_BYTES ({options.reference_bytes:,}) is above MAX_PAYLOAD_BYTES "
            f"({options.max_payload_bytes:,}): no payload is ever large enough to stay in its row.",
            hint="Lower REFERENCE_BYTES (default 256 KiB), or raise MAX_PAYLOAD_BYTES (default 8 MiB).",
            obj=SETTING,
            id="outbox.W001",
        )


def _retries(options: OutboxSettings) -> Iterator[CheckMessage]:
    hint = "The cap must not be below the base; see RETRY_BASE_SECONDS, RETRY_CAP_SECONDS and EVENTS."
    try:
        options.retry_policy("", None)
    except ValueError as error:
        yield Error(f"the default retries are impossible: {error}.", hint=hint, obj=SETTING, id="outbox.E004")
        return
    for contract in contracts:
        try:
            options.retry_policy(contract.event_type, contract.retry)
        except ValueError as error:
            yield Error(
                f"EVENTS: the retries of event type {contract.event_type!r} are impossible: {error}.",
                hint=hint,
                obj=SETTING,
                id="outbox.E004",
            )
    known = ", ".join(repr(choice.value) for choice in OnDead)
    for event_type, event in options.events.items():
        if event.on_dead is not None and event.on_dead not in set(OnDead):
            yield Error(
                f"EVENTS: ON_DEAD of event type {event_type!r} is {event.on_dead!r}.",
                hint=f"Choose one of {known}.",
                obj=SETTING,
                id="outbox.E005",
            )


def _traceparent(options: OutboxSettings) -> Iterator[CheckMessage]:
    if options.traceparent is None:
        return
    try:
        problem = "" if callable(import_string(options.traceparent)) else "it is no function"
    except Exception as error:  # noqa: BLE001 - a module of the project may raise anything; a check never does
        problem = f"{type(error).__name__}: {error}"
    if problem:
        yield Error(
            f"TRACEPARENT {options.traceparent!r} cannot be used: {problem}.",
            hint="Give the dotted path of a function that returns the current W3C traceparent, or remove the key.",
            obj=SETTING,
            id="outbox.E006",
        )
