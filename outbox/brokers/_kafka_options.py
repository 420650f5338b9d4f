"""What ``OUTBOX['BROKER']['OPTIONS']`` may say for Kafka, checked before anything connects. Imports no Kafka client."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final

import msgspec

from outbox.exceptions import ConfigurationError

PositiveInt = Annotated[int, msgspec.Meta(gt=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]

_SERVER: Final = re.compile(r"([A-Za-z_]+://)?(\[[0-9A-Fa-f:.%]+\]|[^\s/@:,]+)(:\d{1,5})?")

_OURS: Final = {
    "acks": "a record counts as sent when every in-sync replica has it",
    "auto_offset_reset": "a new group reads from the oldest record",
    "bootstrap_servers": "give it once, beside the client options",
    "client_id": "it tells the workers apart",
    "enable_auto_commit": "offsets are committed after the database has committed",
    "group_id": "the route of the service names the group",
    "group_instance_id": "a restarted worker must not wait for its old session to end",
    "kafka_client": "it is wrapped here",
    "key_deserializer": "keys are bytes",
    "key_serializer": "keys are bytes",
    "partition_assignment_strategy": "partitions move one by one, and the members of a group must agree",
    "transactional_id": "the outbox table is the transaction",
    "value_deserializer": "values are bytes",
    "value_serializer": "values are bytes",
}
"""Client options that a promise of the outbox depends on, and which one."""


class Secret(str):
    """Text that does not show in ``repr()``: the clients print their options into debug logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


_FILES: Final = frozenset({"ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"})


class KafkaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of ``KafkaBroker``."""

    bootstrap_servers: str | list[str]
    """``host:port``, several as a list or joined by commas."""
    common: dict[str, Any] = {}
    """Options of every client, in the words of kafka-python: ``security_protocol``, ``sasl_…``, ``ssl_…``, …"""
    producer: dict[str, Any] = {}
    """Options of the producer over ours, such as ``compression_type`` or ``max_request_size``."""
    consumer: dict[str, Any] = {}
    """Options of the consumer over ours, such as ``session_timeout_ms``."""
    partitions: PositiveInt = 6
    """Partitions of a topic that is created."""
    replication: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """Replicas of a topic that is created; -1 is what the brokers have as their default."""
    request_timeout_seconds: PositiveSeconds = 10.0
    """How long to wait for one answer, and for a connection."""
    topic_timeout_seconds: PositiveSeconds = 30.0
    """How long a created topic may take to get its leaders."""
    prefetch_records: PositiveInt = 2000
    """Records read ahead of the caller by one subscription."""
    prefetch_bytes: PositiveInt = 32 * 1024 * 1024
    """Bytes read ahead; the last response may go beyond it."""
    revoke_timeout_seconds: PositiveSeconds = 5.0
    """How long a partition that moves to another member waits for the caller to commit what it received of it."""

    def __repr__(self) -> str:
        """Leave out the options of the clients, which may hold passwords."""
        return f"{type(self).__name__}(bootstrap_servers={self.bootstrap_servers!r}, …)"

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> KafkaOptions:
        """Check ``options``.

        :raises ConfigurationError: names the option; a value that may be secret is not repeated.
        """
        try:
            parsed = msgspec.convert(dict(options), type=cls)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"options of the Kafka broker: {error}") from error
        if parsed.replication == 0:
            raise ConfigurationError("options of the Kafka broker: 'replication' must be -1 or at least 1, got 0")
        for server in parsed.servers:
            if not _SERVER.fullmatch(server):
                raise ConfigurationError(
                    "options of the Kafka broker: 'bootstrap_servers' must be host:port, several joined by commas, "
                    "without user or password; those go to 'common' as sasl_plain_username and sasl_plain_password"
                )
        for section in ("common", "producer", "consumer"):
            for key in sorted(_OURS.keys() & getattr(parsed, section).keys()):
                raise ConfigurationError(f"options of the Kafka broker: {section!r} must not set {key!r}: {_OURS[key]}")
            _check_files(section, getattr(parsed, section))
        return parsed

    @property
    def servers(self) -> list[str]:
        """Return the servers, one by one."""
        given = self.bootstrap_servers
        names = given.split(",") if isinstance(given, str) else given
        return [name.strip() for name in names] or [""]

    def client_options(self, section: str, *, known: Collection[str]) -> dict[str, Any]:
        """Return ``common`` and then ``section``, ready for a client that knows the options ``known``.

        What is in ``common`` and unknown to this client is for another one; in its own section it is a mistake.

        :raises ConfigurationError: names the option.
        """
        own: dict[str, Any] = getattr(self, section) if section in {"producer", "consumer"} else {}
        for key in own:
            if key not in known:
                raise ConfigurationError(f"options of the Kafka broker: {section!r} has no option {key!r}")
        merged = {key: value for key, value in self.common.items() if key in known} | own
        return {key: Secret(value) if _is_secret(key, value) else value for key, value in merged.items()}


def _check_files(section: str, options: Mapping[str, Any]) -> None:
    """Refuse a file that cannot be read: to the client it looks like a broker that is away, and waiting never mends it.

    :raises ConfigurationError: names the option and the file.
    """
    for key in sorted(_FILES & options.keys()):
        if options[key] is None:
            continue
        try:
            with open(options[key], "rb"):
                pass
        except (OSError, TypeError) as error:
            raise ConfigurationError(
                f"options of the Kafka broker: {section!r}: {key!r} names a file that cannot be read: {error}"
            ) from error


def _is_secret(key: str, value: object) -> bool:
    return "password" in key and isinstance(value, str)
