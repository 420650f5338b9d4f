"""Event contracts: a msgspec Struct, declared with ``@event``, says what an event type carries. Pure.

Decoding validates; a version other than the current one is lifted by registered upcasters before the handler sees it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

import msgspec

from outbox.declarations.backoff import RetryPolicy
from outbox.exceptions import (
    ConfigurationError,
    EventOwnerConflictError,
    FieldError,
    InvalidEventError,
    PayloadError,
    UnknownEventTypeError,
    UnknownVersionError,
)
from outbox.wire.envelope import DEFAULT_VERSION
from outbox.wire.nesting import encode_shallow

P = TypeVar("P", bound=msgspec.Struct)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the payload of one version as a dict and returns the payload of the next."""

KEY_MAX_LENGTH: Final = 128


class OnDead(enum.StrEnum):
    """What the death of an event means for the later events of its key."""

    CONTINUE = "continue"
    """They go on (the default)."""

    PARK = "park"
    """They wait until a person replays the dead event, edits it or gives it up."""


@dataclass(frozen=True, slots=True)
class EventContract(Generic[P]):
    """One event type: who owns it, what it carries, how it is keyed, how it is retried and how long it may take."""

    event_type: str
    service: str
    version: str
    payload_type: type[P]
    key: Callable[[P], object]
    aggregate_id: Callable[[P], object]
    retry: RetryPolicy | None = None
    on_dead: OnDead = OnDead.CONTINUE
    validate: Callable[[P], None] | None = None
    time_limit: timedelta | None = None
    upcasters: dict[str, tuple[str, Upcaster]] = field(default_factory=dict)

    def message_key(self, payload: P) -> str:
        """Return the key that orders this event.

        :raises InvalidEventError: it is empty, too long, or begins or ends with white space (a table of MySQL
            may compare keys without regard to trailing blanks, so such keys would not stay apart).
        """
        value = self.key(payload)
        key = "" if value is None else str(value)
        if not key:
            raise InvalidEventError(self.event_type, field="message_key", reason="it is empty; give the key a value")
        if len(key) > KEY_MAX_LENGTH:
            raise InvalidEventError(
                self.event_type,
                field="message_key",
                reason=f"{key[:32]!r}… has {len(key)} characters; at most {KEY_MAX_LENGTH} are allowed",
            )
        if key != key.strip() or "\x00" in key:
            raise InvalidEventError(
                self.event_type,
                field="message_key",
                reason=f"{key!r} begins or ends with white space or holds a NUL; remove it",
            )
        return key

    def aggregate_text(self, payload: P) -> str:
        """Return what the envelope says of the aggregate, an empty text where ``payload`` names none.

        :raises InvalidEventError: it holds a NUL, which no header of a record may hold.
        """
        value = self.aggregate_id(payload)
        text = "" if value is None else str(value)
        if "\x00" in text:
            raise InvalidEventError(self.event_type, field="aggregate_id", reason="it holds a NUL; remove it")
        return text

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON after checking that it keeps this contract.

        :raises InvalidEventError: names the field and the reason.
        """
        try:
            encoded = encode_shallow(payload)
            self._check(msgspec.json.decode(encoded, type=self.payload_type))
        except FieldError as error:
            raise InvalidEventError(self.event_type, field=error.field, reason=error.reason) from error
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise InvalidEventError(self.event_type, field=_field_of(error), reason=str(error)) from error
        return encoded

    def decode(self, raw: bytes | msgspec.Raw, *, version: str) -> P:
        """Return the payload, lifted to the current version where it is an older one.

        :raises PayloadError: it does not decode, or does not keep the contract.
        :raises UnknownVersionError: no chain of upcasters leads from ``version`` to the current one.
        """
        try:
            if version == self.version:
                return self._check(msgspec.json.decode(raw, type=self.payload_type))
            return self._check(msgspec.convert(self._lift(raw, version), type=self.payload_type, str_keys=True))
        except (msgspec.MsgspecError, UnicodeError, RecursionError, FieldError) as error:
            raise PayloadError(f"payload of {self.event_type!r} {version}: {error}") from error

    def _check(self, payload: P) -> P:
        if self.validate is not None:
            self.validate(payload)
        return payload

    def _lift(self, raw: bytes | msgspec.Raw, version: str) -> dict[str, Any]:
        steps: list[Upcaster] = []
        at = version
        while at != self.version:
            if at not in self.upcasters or len(steps) > len(self.upcasters):
                known = ", ".join([self.version, *sorted(self.upcasters)])
                raise UnknownVersionError(
                    f"event_version {version!r} of {self.event_type!r} is unknown here; known versions: {known}"
                )
            at, upcaster = self.upcasters[at]
            steps.append(upcaster)
        lifted: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        for upcaster in steps:
            try:
                lifted = upcaster(lifted)
            except Exception as error:
                raise PayloadError(f"payload of {self.event_type!r} {version}: upcaster failed: {error!r}") from error
        return lifted


class ContractRegistry:
    """All contracts, by event type and by payload type."""

    def __init__(self) -> None:
        self._by_type: dict[str, EventContract[Any]] = {}
        self._by_payload: dict[type[msgspec.Struct], EventContract[Any]] = {}

    def __iter__(self) -> Iterator[EventContract[Any]]:
        return iter(self._by_type.values())

    def add(self, contract: EventContract[Any]) -> None:
        """Register a contract; an event type has one contract, and a payload type speaks for one event type.

        :raises EventOwnerConflictError: another service registered the event type.
        :raises ConfigurationError: the event type or the payload type is taken.
        """
        known = self._by_type.get(contract.event_type)
        if known is not None and known.service != contract.service:
            raise EventOwnerConflictError(contract.event_type, owner=known.service, claimed_by=contract.service)
        if known is not None and known.payload_type is not contract.payload_type:
            raise ConfigurationError(
                f"event type {contract.event_type!r} has two contracts, {known.payload_type.__qualname__} and "
                f"{contract.payload_type.__qualname__}; keep one"
            )
        if self._by_payload.get(contract.payload_type, contract).event_type != contract.event_type:
            raise ConfigurationError(f"{contract.payload_type.__qualname__} is the contract of two event types")
        self._by_type[contract.event_type] = contract
        self._by_payload[contract.payload_type] = contract

    def get(self, event_type: str) -> EventContract[Any]:
        """Return the contract of ``event_type``.

        :raises UnknownEventTypeError: there is none.
        """
        try:
            return self._by_type[event_type]
        except KeyError:
            raise UnknownEventTypeError(event_type) from None

    def of(self, payload: P) -> EventContract[P]:
        """Return the contract that ``payload`` is an instance of.

        :raises UnknownEventTypeError: its class was not declared with ``@event``.
        """
        try:
            return self._by_payload[type(payload)]
        except KeyError:
            raise UnknownEventTypeError(type(payload).__qualname__) from None

    def of_service(self, service: str) -> tuple[EventContract[Any], ...]:
        """Return the contracts that ``service`` owns, by event type."""
        return tuple(
            sorted(
                (c for c in self._by_type.values() if c.service == service), key=lambda contract: contract.event_type
            )
        )


contracts: Final = ContractRegistry()
"""The process's contracts: filled when the apps' ``events.py`` are imported."""


def event(
    event_type: str,
    *,
    service: str,
    key: str | Callable[[Any], object],
    aggregate_id: str | Callable[[Any], object] | None = None,
    version: str = DEFAULT_VERSION,
    retry: RetryPolicy | None = None,
    on_dead: OnDead | str = OnDead.CONTINUE,
    validate: Callable[[Any], None] | None = None,
    time_limit: timedelta | None = None,
    registry: ContractRegistry = contracts,
) -> Callable[[type[P]], type[P]]:
    """Declare a msgspec Struct as the contract of ``event_type``.

    ``key`` and ``aggregate_id`` name a field or are functions of the payload; the aggregate id defaults to the key.
    ``validate`` checks at publish and at decode what types cannot express, and raises ``FieldError``.
    ``time_limit`` is how long one call of the handler may take. ``registry`` is the process's own, except in tests.

    :raises ConfigurationError: the class is not a Struct, has no such field, or is the contract of another event type;
        the event type has another contract; or the time limit is not positive.
    :raises EventOwnerConflictError: another service registered the event type.
    """

    def declare(payload_type: type[P]) -> type[P]:
        if not (isinstance(payload_type, type) and issubclass(payload_type, msgspec.Struct)):
            raise ConfigurationError(f"@event({event_type!r}) wants a msgspec.Struct, got {payload_type!r}")
        if time_limit is not None and time_limit <= timedelta(0):
            raise ConfigurationError(f"@event({event_type!r}): time_limit must be positive, got {time_limit!r}")
        registry.add(
            EventContract(
                event_type=event_type,
                service=service,
                version=version,
                payload_type=payload_type,
                key=_getter(event_type, payload_type, key),
                aggregate_id=_getter(event_type, payload_type, key if aggregate_id is None else aggregate_id),
                retry=retry,
                on_dead=OnDead(on_dead),
                validate=validate,
                time_limit=time_limit,
            )
        )
        return payload_type

    return declare


def upcasts(
    event_type: str, *, from_version: str, to_version: str, registry: ContractRegistry = contracts
) -> Callable[[Upcaster], Upcaster]:
    """Declare a function that lifts a payload of ``from_version`` to ``to_version``.

    It takes the payload as a dict and returns it as one. ``registry`` is the process's own, except in tests.

    :raises UnknownEventTypeError: the event type is declared later than its upcaster, or not at all.
    :raises ConfigurationError: ``from_version`` is the current version or has an upcaster already.
    """

    def declare(upcaster: Upcaster) -> Upcaster:
        contract = registry.get(event_type)
        if from_version == contract.version or from_version in contract.upcasters:
            raise ConfigurationError(
                f"{event_type!r} needs no upcaster from version {from_version!r}: there is one way"
            )
        contract.upcasters[from_version] = (to_version, upcaster)
        return upcaster

    return declare


def _getter(
    event_type: str, payload_type: type[msgspec.Struct], key: str | Callable[[Any], object]
) -> Callable[[Any], object]:
    if callable(key):
        return key
    if key not in payload_type.__struct_fields__:
        raise ConfigurationError(
            f"@event({event_type!r}): {payload_type.__qualname__} has no field {key!r}; "
            f"it has {', '.join(payload_type.__struct_fields__)}"
        )
    name = key
    return lambda payload: getattr(payload, name)


def _field_of(error: Exception) -> str:
    """Take the field's name out of msgspec's message, which ends in ``- at `$.field```."""
    _, _, path = str(error).rpartition("at `$.")
    return path.rstrip("`") if path and path != str(error) else "payload"
