"""What ``OUTBOX['BROKER']['OPTIONS']`` may say for Kafka, checked before anything connects. Imports no Kafka client."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec

from outbox.exceptions import ConfigurationError

PositiveInt = Annotated[int, msgspec.Meta(gt=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=2_147_483)]
"""Milliseconds travel as 32 bits."""

_SERVER: Final = re.compile(r"([A-Za-z_]+://)?(\[[0-9A-Fa-f:.%]+\]|[^\s/@:,]+)(:\d{1,5})?")

_OURS: Final = {
    "acks": "a record counts as sent when every in-sync replica has it",
    "auto_offset_reset": "a new group reads from the oldest record",
    "bootstrap_servers": "give it once, beside the client options",
    "client_id": "it tells the workers apart",
    "enable_idempotence": "a record that is sent again comes once, and overtakes no other",
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


_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_PASSWORD_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_MECHANISMS: Final = (*_PASSWORD_MECHANISMS, "GSSAPI", "OAUTHBEARER", "AWS_MSK_IAM")
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
    prefetch_bytes: PositiveInt = 16 * 1024 * 1024
    """Bytes read ahead; the last record may go beyond it."""
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
            found = _SERVER.fullmatch(server)
            if found is None or not 0 < int((found[3] or ":9092")[1:]) < 65536:
                raise ConfigurationError(
                    "options of the Kafka broker: 'bootstrap_servers' must be host:port, several joined by commas, "
                    "without user or password; those go to 'common' as sasl_plain_username and sasl_plain_password"
                )
        for section in ("common", "producer", "consumer"):
            for key in sorted(_OURS.keys() & getattr(parsed, section).keys()):
                raise ConfigurationError(f"options of the Kafka broker: {section!r} must not set {key!r}: {_OURS[key]}")
            _check_files(section, getattr(parsed, section))
        for section in ("common", "producer", "consumer"):
            _check_security(section, parsed.common | getattr(parsed, section), parsed.servers)
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


def _check_security(section: str, options: Mapping[str, Any], servers: Iterable[str]) -> None:
    """Refuse what the client would not: it takes an unknown protocol for PLAINTEXT, and goes on in the clear.

    :raises ConfigurationError: names the option, and its value unless that may be a secret.
    """
    given = {key: value for key, value in options.items() if value is not None}
    protocol = given.get("security_protocol", "PLAINTEXT")
    if protocol not in _PROTOCOLS:
        raise _refused(section, "security_protocol", f"is {protocol!r}; choose one of {', '.join(_PROTOCOLS)}")
    for server in servers:
        scheme, slashes, _ = server.partition("://")
        if slashes and scheme.upper() != protocol:
            fault = f"is {protocol}, and 'bootstrap_servers' say {scheme}://, which the client ignores; let them agree"
            raise _refused(section, "security_protocol", fault)
    has_sasl, has_tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    unused = [key for key in sorted(given) if _is_unused(key, has_sasl=has_sasl, has_tls=has_tls)]
    if unused:
        wanted = "SASL_SSL" if unused[0].startswith("sasl_") else "SSL or SASL_SSL"
        fault = f"has no effect with security_protocol {protocol}; make that {wanted}, or remove {unused[0]!r}"
        raise _refused(section, unused[0], fault)
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise _refused(section, "ssl_keyfile", "has no effect without its certificate; set 'ssl_certfile' too")
    if not isinstance(options.get("ssl_check_hostname", True), bool):
        raise _refused(section, "ssl_check_hostname", "is neither True nor False; remove it, and names are checked")
    if has_sasl:
        _check_mechanism(section, given)


def _check_mechanism(section: str, given: Mapping[str, Any]) -> None:
    mechanism = given.get("sasl_mechanism")
    if mechanism not in _MECHANISMS:
        raise _refused(section, "sasl_mechanism", f"is {mechanism!r}; choose one of {', '.join(_MECHANISMS)}")
    for key in ("sasl_plain_username", "sasl_plain_password"):
        if mechanism in _PASSWORD_MECHANISMS and not (isinstance(given.get(key), str) and given[key]):
            raise _refused(section, key, f"is no text or empty, and sasl_mechanism {mechanism} needs it; set it")


def _is_unused(key: str, *, has_sasl: bool, has_tls: bool) -> bool:
    return (key.startswith("sasl_") and not has_sasl) or (key.startswith("ssl_") and not has_tls)


def _refused(section: str, key: str, fault: str) -> ConfigurationError:
    return ConfigurationError(f"options of the Kafka broker: {section!r}: {key!r} {fault}")


def _is_secret(key: str, value: object) -> bool:
    return "password" in key and isinstance(value, str)
