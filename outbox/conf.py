"""``settings.OUTBOX`` as one frozen object, validated, with defaults; read lazily and again when settings change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePath
from typing import Annotated, Any, Final

import msgspec
from django.conf import settings
from django.core.signals import setting_changed

from outbox.declarations.backoff import RetryPolicy
from outbox.exceptions import ConfigurationError

__all__ = ["OutboxSettings", "outbox_settings"]

PositiveInt = Annotated[int, msgspec.Meta(gt=0, le=2_147_483_647)]
"""The largest is that of the columns that keep such a number."""
Milliseconds = Annotated[int, msgspec.Meta(gt=0, le=86_400_000)]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=4_294_967_295)]
"""The largest is the length of MySQL's ``LONGTEXT``."""
Batches = Annotated[int, msgspec.Meta(gt=0, le=1_000)]
BatchSize = Annotated[int, msgspec.Meta(gt=0, le=999)]
"""From 1,000 ids on MariaDB turns a list into a join (``in_predicate_conversion_threshold``), which would take locks in
another order than the ids'."""
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=3_153_600_000)]


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=str.upper):
    """Base of all options: upper-case keys in settings, unknown ones refused."""


class ServiceOptions(_Options, frozen=True):
    """Names of a service that differ from the rule; the rule fills what is absent."""

    table: str | None = None
    topic: str | None = None
    group: str | None = None
    database: str | None = None


class EventOptions(_Options, frozen=True):
    """Retries and time limit of one event type, over what its contract says."""

    base_seconds: PositiveSeconds | None = None
    cap_seconds: PositiveSeconds | None = None
    max_attempts: PositiveInt | None = None
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    on_dead: str | None = None
    time_limit_seconds: PositiveSeconds | None = None
    """How long one call of its handler may take."""


class RelayOptions(_Options, frozen=True):
    """How the relay works."""

    batch_size: BatchSize = 500
    """Events claimed, sent and marked together."""
    batch_bytes: Bytes = 16 * 1024 * 1024
    """Payload bytes of them at the most."""
    in_flight_batches: Batches = 2
    """Batches sent and not yet answered for; the broker's client has no bound of its own."""
    poll_interval_ms: Milliseconds = 20
    """Pause after a claim found nothing; grows up to ``max_poll_interval_ms`` while nothing comes."""
    max_poll_interval_ms: Milliseconds = 1000
    """Longest such pause; commits on the same host end it (``wake_up_folder``)."""
    wake_up_folder: str | None = None
    """Where publishers and relays of one host meet; None: a folder of the user's in the temporary one, "": nowhere."""
    sweep_interval_seconds: PositiveSeconds = 1.0
    """How often the claim starts again from the oldest row: late commits and retries land behind its mark."""
    redeliver_after_seconds: PositiveSeconds = 300.0
    """A row published for longer and not consumed is delivered again."""
    send_timeout_seconds: PositiveSeconds = 30.0
    """How long to wait for the broker's answers to a batch before it counts as an outage."""

    def __post_init__(self) -> None:
        if self.poll_interval_ms > self.max_poll_interval_ms:
            raise ValueError(
                f"POLL_INTERVAL_MS is {self.poll_interval_ms} and MAX_POLL_INTERVAL_MS {self.max_poll_interval_ms}; "
                f"the pause grows from the one to the other, so do not make the first one larger"
            )
        if self.wake_up_folder and not PurePath(self.wake_up_folder).is_absolute():
            raise ValueError(
                f"WAKE_UP_FOLDER is {self.wake_up_folder!r}; give it from the root on, as publishers and relays may "
                f"work in different folders"
            )


class ConsumerOptions(_Options, frozen=True):
    """How the consumer works."""

    batch_size: BatchSize = 500
    batch_bytes: Bytes = 16 * 1024 * 1024
    """Payload bytes handled in one transaction at the most (a single larger event is handled alone)."""
    poll_interval_ms: Milliseconds = 200
    """How long one receive waits for records."""
    wait_min_ms: Milliseconds = 200
    """Shortest pause of an event that waits for its predecessor."""
    wait_max_seconds: PositiveSeconds = 60.0
    """Longest such pause."""
    topic_timeout_seconds: PositiveSeconds = 30.0
    """How long a worker waits for its topic at start."""
    handler_time_limit_seconds: PositiveSeconds = 60.0
    """How long one call of a handler may take, unless its event type says otherwise."""
    hung_handler_grace_seconds: PositiveSeconds = 10.0
    """How long a handler that was interrupted may still take; then the process ends."""
    transaction_seconds: PositiveSeconds = 5.0
    """Budget of one transaction: events that have not begun by then belong to the next one."""

    def __post_init__(self) -> None:
        if self.wait_min_ms > self.wait_max_seconds * 1_000:
            raise ValueError(
                f"WAIT_MIN_MS is {self.wait_min_ms}, which is more than WAIT_MAX_SECONDS ({self.wait_max_seconds:g}); "
                f"lower the one or raise the other"
            )


class LeaseOptions(_Options, frozen=True):
    """Who works on which shard of keys."""

    ttl_seconds: PositiveSeconds = 6.0
    """A crashed worker's shards are free after this time; with a heartbeat it stays below ten seconds."""
    heartbeat_seconds: PositiveSeconds = 2.0


class BrokerOptions(_Options, frozen=True):
    """Which broker carries the events: ``table``, ``kafka``, ``memory`` or the dotted path of a ``Broker``."""

    backend: str = "table"
    options: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Leave out the options, which may hold passwords: objects show in logs and on pages of errors."""
        return f"{type(self).__name__}(backend={self.backend!r}, …)"


class OutboxSettings(_Options, frozen=True):
    """All of ``settings.OUTBOX``."""

    namespace: str = "app"
    """First word of topics and consumer groups made by rule."""
    enabled: bool = True
    """False: events are written and wait; nothing is sent. Publishers of what may be lost skip it."""
    broker: BrokerOptions = BrokerOptions()
    services: dict[str, ServiceOptions] = {}
    events: dict[str, EventOptions] = {}
    relay: RelayOptions = RelayOptions()
    consumer: ConsumerOptions = ConsumerOptions()
    leases: LeaseOptions = LeaseOptions()
    retry_base_seconds: PositiveSeconds = 1.0
    retry_cap_seconds: PositiveSeconds = 600.0
    retry_max_attempts: PositiveInt = 20
    retry_jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    max_payload_bytes: Bytes = 8 * 1024 * 1024
    """A larger payload is refused at publish; keep it below the database's ``max_allowed_packet``."""
    reference_bytes: Bytes = 256 * 1024
    """A larger payload stays in its row; its record carries the row's id only."""
    traceparent: str | None = None
    """Dotted path of a function that returns the current W3C traceparent or None."""

    def retry_policy(self, event_type: str, declared: RetryPolicy | None) -> RetryPolicy:
        """Return the retries of ``event_type``: configuration first, then its contract, then the defaults."""
        base = declared or RetryPolicy(
            base=timedelta(seconds=self.retry_base_seconds),
            cap=timedelta(seconds=self.retry_cap_seconds),
            max_attempts=self.retry_max_attempts,
            jitter=self.retry_jitter,
        )
        options = self.events.get(event_type)
        if options is None:
            return base
        base_s = options.base_seconds or base.base.total_seconds()
        cap_s = options.cap_seconds or max(base.cap.total_seconds(), base_s)
        return RetryPolicy(
            base=timedelta(seconds=base_s),
            cap=timedelta(seconds=cap_s),
            max_attempts=options.max_attempts or base.max_attempts,
            jitter=base.jitter if options.jitter is None else options.jitter,
        )

    def time_limit(self, event_type: str, declared: timedelta | None) -> timedelta:
        """Return how long a handler call of ``event_type`` may take: configuration, its contract, the default."""
        options = self.events.get(event_type)
        if options is not None and options.time_limit_seconds is not None:
            return timedelta(seconds=options.time_limit_seconds)
        return declared or timedelta(seconds=self.consumer.handler_time_limit_seconds)


@lru_cache(maxsize=1)
def outbox_settings() -> OutboxSettings:
    """Return the project's settings.

    :raises ConfigurationError: names the key, the value's fault, where it is, and the value unless it may be a secret.
    """
    raw = getattr(settings, "OUTBOX", {})
    try:
        return msgspec.convert(raw, type=OutboxSettings)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise ConfigurationError(f"settings.OUTBOX: {error}{_place_of_fault(raw)}") from error


_SHOWN: Final = 80
"""Characters of a wrong value that a message repeats."""


def _place_of_fault(raw: object) -> str:
    """Return in words the key of ``raw`` that cannot be read, and its value; nothing where no single key is at fault.

    msgspec says neither the value nor which service or event type it is of.
    """
    keys: list[object] = []
    value = raw
    while isinstance(value, dict):
        at_fault = [key for key, below in value.items() if not _is_readable([*keys, key], below)]
        if not at_fault:
            break
        keys.append(at_fault[0])
        value = value[at_fault[0]]
    if not keys:
        return ""
    place = "OUTBOX" + "".join(f"[{key!r:.{_SHOWN}}]" for key in keys)
    may_be_secret = keys[0] == "BROKER" or not isinstance(value, (str, int, float, type(None)))
    return f" ({place})" if may_be_secret else f" ({place} is {value!r:.{_SHOWN}})"


def _is_readable(keys: Iterable[object], value: object) -> bool:
    for key in reversed([*keys]):
        value = {key: value}
    try:
        msgspec.convert(value, type=OutboxSettings)
    except (msgspec.ValidationError, UnicodeError):
        return False
    return True


OnReset = Callable[[], None]
_on_reset: Final[list[OnReset]] = []


def on_settings_reset(function: OnReset) -> OnReset:
    """Have ``function`` called when ``settings.OUTBOX`` changes (in tests): what was built from it is stale."""
    _on_reset.append(function)
    return function


def _reset(*, setting: str, **_: object) -> None:
    if setting == "OUTBOX":
        outbox_settings.cache_clear()
        for function in _on_reset:
            function()


setting_changed.connect(_reset, dispatch_uid="outbox.conf.reset")
