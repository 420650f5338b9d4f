"""How every Kafka client is built, and how its errors become ours.

kafka-python has no types: ``Any`` stands for its objects in this package, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaConfigurationError, KafkaError

from outbox.brokers.kafka import codecs as kafka_codecs
from outbox.brokers.kafka.options import KafkaOptions
from outbox.brokers.kafka.private import Part, close_client, do_without, look_up
from outbox.brokers.kafka.refusals import Refusals
from outbox.exceptions import BrokerUnavailableError, ConfigurationError
from outbox.log_text import get_logger, one_line

try:
    from kafka.net.compat import KafkaNetClient
except ImportError as missing:
    KafkaNetClient = None
    do_without(Part.NETWORK, missing)

logger = get_logger(__name__)

RECONNECT_PAUSE_MAX_MS: Final = 1_000
"""Longest pause between two attempts to connect; kafka-python's 30 s would add to every outage."""

METADATA_MAX_AGE_MS: Final = 60_000
"""How soon partitions that were added to a topic are noticed."""

_ISOLATION_LEVELS: Final = ("read_uncommitted", "read_committed")

_EXPIRY_S: Final = 30.0
"""After so long, a producer holds no record any more: see ``DELIVERY_TIMEOUT_MS``."""

_WRONGLY_CONFIGURED: Final = (KafkaConfigurationError, ValueError, TypeError, AssertionError, RuntimeError)
"""What the constructors raise when an option is at fault, beside ``KafkaError`` for the network's."""


class _WithoutCredentials(logging.Filter):
    """Keeps out the debug lines in which kafka-python prints what it sends: passwords, and everybody's payloads."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        return not any(
            isinstance(arg, bytes | bytearray | memoryview) or type(arg).__name__.startswith("Sasl") for arg in args
        )


_without_credentials: Final = _WithoutCredentials()
_TALKATIVE: Final = ("kafka.net.connection", "kafka.protocol.parser")


class _Producer(KafkaProducer):  # type: ignore[misc] # the client has no types
    """A producer that leaves the library as it is when it is collected: the library's own silences its log for good."""

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close(timeout=1)


class ClientFactory:
    """Builds clients from one set of options."""

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self._refusals = Refusals()
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(_without_credentials)
        everything = {*KafkaProducer.DEFAULT_CONFIG, *KafkaConsumer.DEFAULT_CONFIG, *KafkaAdminClient.DEFAULT_CONFIG}
        for key in options.common:
            if key not in everything:
                raise ConfigurationError(f"options of the Kafka broker: 'common' has no option {key!r}")
        producer = self.client_options("producer", KafkaProducer)
        fault = kafka_codecs.fault_of(producer.get("compression_type")) or kafka_codecs.fault_of_size(producer)
        if fault:
            raise ConfigurationError(f"options of the Kafka broker: 'producer': {fault}")
        if self.isolation_level not in _ISOLATION_LEVELS:
            raise ConfigurationError(
                f"options of the Kafka broker: 'consumer': 'isolation_level' must be one of "
                f"{', '.join(_ISOLATION_LEVELS)}, got {self.isolation_level!r}"
            )
        self.client_options("consumer", KafkaConsumer)

    @property
    def servers(self) -> str:
        """Return the servers for messages."""
        return ", ".join(self.options.servers)

    @property
    def request_timeout_ms(self) -> int:
        return round(self.options.request_timeout_seconds * 1000)

    @property
    def isolation_level(self) -> str:
        """Whether consumers read records of transactions that are open or aborted, in the words of kafka-python."""
        level: str = self.client_options("consumer", KafkaConsumer).get("isolation_level", "read_uncommitted")
        return level

    def client_options(self, section: str, client: Any) -> dict[str, Any]:
        """Return what the project set for this kind of client.

        :raises ConfigurationError: names an option that the client does not know, or whose value is of another kind
            than its default: kafka-python takes ``"false"`` for true, and waits for ever where a time is negative.
        """
        options = self.options.client_options(section, known=client.DEFAULT_CONFIG.keys())
        for key, value in options.items():
            if wanted := _other_kind(value, client.DEFAULT_CONFIG[key]):
                raise ConfigurationError(f"options of the Kafka broker: {section}: {key!r} is {value!r}; give {wanted}")
        return options

    def producer(self, defaults: Mapping[str, Any], *, client_id: str, fixed: Mapping[str, Any]) -> Any:
        """Connect a ``KafkaProducer``. The project's options go over ``defaults``, and ``fixed`` goes over them."""
        return self._build(_Producer, "producer", client_id, defaults, fixed)[0]

    def consumer(self, defaults: Mapping[str, Any], *, client_id: str, fixed: Mapping[str, Any]) -> tuple[Any, Any]:
        """Connect a ``KafkaConsumer`` likewise; return it and the network client below it, None where there is none."""
        return self._build(KafkaConsumer, "consumer", client_id, defaults, fixed)

    def admin(self) -> Any:
        """Connect a ``KafkaAdminClient``."""
        return self._build(KafkaAdminClient, "admin", "outbox-admin", {}, {})[0]

    def unavailable(self, what: str, error: BaseException | str) -> BrokerUnavailableError:
        """Return the error that says that Kafka is away, where, what failed and why."""
        return BrokerUnavailableError(f"Kafka at {self.servers}: {what}: {self.why(error)}")

    def why(self, error: BaseException | str) -> str:
        """Return an error in words, and why the brokers let nobody in, where they do not."""
        return self._refusals.explain(error, error if isinstance(error, str) else describe(error))

    def _build(
        self, client: Any, section: str, client_id: str, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        network: list[Any] = []

        def network_client(**config: Any) -> Any:
            made = KafkaNetClient(**config)
            network.append(made)
            # 3.0 takes allow_auto_create_topics and does not pass it on: without this, a misspelt topic is created.
            if (cluster_config := look_up(Part.NETWORK, made, "cluster.config")) is not None:
                cluster_config["allow_auto_create_topics"] = False
            self._refusals.watch(made, config)
            return made

        config = {
            "request_timeout_ms": self.request_timeout_ms,
            "bootstrap_timeout_ms": self.request_timeout_ms,
            "reconnect_backoff_max_ms": RECONNECT_PAUSE_MAX_MS,
            "metadata_max_age_ms": METADATA_MAX_AGE_MS,
            **defaults,
            **self.client_options(section, client),
            **fixed,
            "bootstrap_servers": self.options.servers,
            "client_id": client_id,
        }
        known = client.DEFAULT_CONFIG
        if "allow_auto_create_topics" in known:
            config["allow_auto_create_topics"] = False
        if KafkaNetClient is not None and "kafka_client" in known:
            config["kafka_client"] = network_client
        try:
            made = client(**config)
        except _WRONGLY_CONFIGURED as error:
            _close(network)
            raise ConfigurationError(f"options of the Kafka broker: {section}: {describe(error)}") from error
        except (KafkaError, OSError) as error:
            _close(network)
            raise self.unavailable("cannot connect", self._refusals.reason or error) from error
        if not network:
            do_without(Part.NETWORK, "the option kafka_client is not taken")
        return made, network[0] if network else None


def describe(error: BaseException) -> str:
    """Return an error's kind and text on one line; the clients leave the text out at times."""
    text = one_line(" ".join(str(error).split()))  # a broker wrote a part of it
    kind = type(error).__name__
    return text if kind in text else f"{kind}: {text}" if text else kind


def _other_kind(value: object, default: object) -> str:
    """Return what ``value`` should be and is not, going by ``default``; an empty text where it is in order."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, (int, float)):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if is_number and value >= 0 else "a number, 0 or more"  # type: ignore[operator]  # it is one
    return "a text" if isinstance(default, str) and not isinstance(value, str) else ""


def abandon(producer: Any, *, patience_seconds: float) -> None:
    """End a producer without waiting for answers: what it still holds fails at once.

    Its own ``close()`` begins with a flush and raises when that takes too long, and then nothing is closed. So the
    I/O thread is told to end, and a thread of ours frees the rest when it has. Where that thread cannot be told, it
    tries to close until the records that the client holds have expired.
    """
    parts = look_up(Part.CLOSING, producer, "_sender.force_close", "_sender.join")

    def free() -> None:
        if parts is not None:
            parts[1](patience_seconds)
        tries = 1 if parts is not None else round(_EXPIRY_S / patience_seconds) + 2
        timeout_s = 0 if parts is not None else patience_seconds
        for left in reversed(range(tries)):
            try:
                close_client(producer, lambda: producer.close(timeout=timeout_s))
            except KafkaError as error:
                if not left:
                    logger.warning("Kafka producer %s could not be closed: %s", producer, describe(error))
            else:
                return

    if parts is not None:
        parts[0]()
    threading.Thread(target=free, name="outbox-kafka-abandon", daemon=True).start()


def _close(network: Sequence[Any]) -> None:
    for client in network:
        with contextlib.suppress(KafkaError, RuntimeError, OSError):
            client.close()
