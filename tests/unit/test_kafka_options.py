"""The Kafka broker without a Kafka: its options, what it does when nobody answers, and what it keeps to itself."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.brokers import BACKENDS, load_backend
from outbox.brokers.base import Broker
from outbox.brokers.kafka import KafkaBroker
from outbox.brokers.kafka.options import KafkaOptions
from outbox.brokers.memory import MemoryBroker
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError, ConfigurationError

ROUTE = ServiceRoute(service="agent", table="t", topic="agent.outbox", group="agent-consumer")
PASSWORD = "correct-horse-battery"


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses connections for as long as the test runs."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --- backends by name ------------------------------------------------------------------------------------------------


def test_backends_are_found_by_short_name_and_by_path() -> None:
    assert load_backend("memory") is MemoryBroker
    assert load_backend("kafka") is KafkaBroker
    assert load_backend("outbox.brokers.memory.MemoryBroker") is MemoryBroker
    assert all(issubclass(load_backend(name), Broker) for name in BACKENDS)


@pytest.mark.parametrize("name", ["", "rabbit", "outbox.brokers.nothing.Broker", "outbox.brokers.base.Positions"])
def test_unknown_backend_is_refused_and_the_known_ones_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match="kafka, table, memory"):
        load_backend(name)


def test_choosing_a_backend_does_not_import_a_kafka_client() -> None:
    code = "import sys, outbox.brokers; outbox.brokers.load_backend('memory'); sys.exit('kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bootstrap_servers": 9092}, "bootstrap_servers"),
        ({"bootstrap_servers": ""}, "bootstrap_servers"),
        ({"bootstrap_servers": "a:1,,b:2"}, "bootstrap_servers"),
        ({"bootstrap_servers": []}, "bootstrap_servers"),
        ({"bootstrap_servers": "a:1", "partition": 3}, "partition"),
        ({"bootstrap_servers": "a:1", "partitions": 0}, "partitions"),
        ({"bootstrap_servers": "a:1", "replication": 0}, "replication"),
        ({"bootstrap_servers": "a:1", "request_timeout_seconds": -1}, "request_timeout_seconds"),
        ({"bootstrap_servers": "a:1", "producer": []}, "producer"),
        ({"bootstrap_servers": "a:1", "producer": {"acks": 1}}, "acks"),
        ({"bootstrap_servers": "a:1", "producer": {"enable_idempotence": False}}, "enable_idempotence"),
        ({"bootstrap_servers": "a:1", "producer": {"compresion_type": "gzip"}}, "compresion_type"),
        ({"bootstrap_servers": "a:1", "consumer": {"group_id": "mine"}}, "group_id"),
        ({"bootstrap_servers": "a:1", "consumer": {"linger_ms": 3}}, "linger_ms"),
        ({"bootstrap_servers": "a:1", "common": {"sasl_user": "me"}}, "sasl_user"),
        ({"bootstrap_servers": "a:1", "common": {"client_id": "me"}}, "client_id"),
        ({"bootstrap_servers": "a:1", "producer": {"linger_ms": "5"}}, "'linger_ms' is '5'; give a number"),
        ({"bootstrap_servers": "a:1", "producer": {"linger_ms": -1}}, "'linger_ms' is -1; give a number, 0 or more"),
        ({"bootstrap_servers": "a:1", "producer": {"linger_ms": True}}, "'linger_ms' is True; give a number"),
        ({"bootstrap_servers": "a:1", "consumer": {"session_timeout_ms": float("nan")}}, "'session_timeout_ms' is nan"),
        (
            {"bootstrap_servers": "a:1", "consumer": {"check_crcs": "false"}},
            "'check_crcs' is 'false'; give True or",
        ),
        ({"bootstrap_servers": "a:1", "consumer": {"check_crcs": 0}}, "'check_crcs' is 0; give True or False"),
        ({"bootstrap_servers": "a:1", "common": {"client_dns_lookup": 1}}, "'client_dns_lookup' is 1; give a text"),
        ({"bootstrap_servers": "a:0"}, "bootstrap_servers"),
        ({"bootstrap_servers": "a:65536"}, "bootstrap_servers"),
        ({"bootstrap_servers": "a:1", "request_timeout_seconds": float("inf")}, "request_timeout_seconds"),
        ({"bootstrap_servers": "a:1", "topic_timeout_seconds": float("nan")}, "topic_timeout_seconds"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        KafkaBroker(**options)


SASL: dict[str, Any] = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "outbox",
    "sasl_plain_password": PASSWORD,
}


@pytest.mark.parametrize("section", ["common", "producer", "consumer"])
@pytest.mark.parametrize(
    ("changes", "named", "said"),
    [
        ({"security_protocol": "SASL_SLL"}, "security_protocol", "'SASL_SLL'; choose one of PLAINTEXT, SSL, SASL_"),
        ({"security_protocol": "sasl_ssl"}, "security_protocol", "'sasl_ssl'; choose one of"),
        ({"security_protocol": ""}, "security_protocol", "choose one of"),
        ({"security_protocol": 1}, "security_protocol", "choose one of"),
        ({"security_protocol": None}, "sasl_mechanism", "no effect with security_protocol PLAINTEXT"),
        ({"security_protocol": "PLAINTEXT"}, "sasl_mechanism", "no effect with security_protocol PLAINTEXT"),
        ({"security_protocol": "SSL"}, "sasl_mechanism", "no effect with security_protocol SSL"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "ssl_check_hostname": True},
            "ssl_check_hostname",
            "no effect with security_protocol SASL_PLAINTEXT",
        ),
        ({"sasl_mechanism": "SCRAM-SHA-521"}, "sasl_mechanism", "'SCRAM-SHA-521'; choose one of PLAIN, SCRAM-SHA-256"),
        ({"sasl_mechanism": None}, "sasl_mechanism", "choose one of"),
        ({"sasl_mechanism": ["PLAIN"]}, "sasl_mechanism", "choose one of"),
        ({"sasl_plain_username": None}, "sasl_plain_username", "PLAIN needs it"),
        ({"sasl_plain_password": ""}, "sasl_plain_password", "PLAIN needs it"),
        ({"sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_password": None}, "sasl_plain_password", "SCRAM-SHA-512"),
        ({"ssl_keyfile": __file__}, "ssl_keyfile", "ssl_certfile"),
        ({"ssl_check_hostname": None}, "ssl_check_hostname", "neither True nor False"),
        ({"ssl_check_hostname": 0}, "ssl_check_hostname", "neither True nor False"),
    ],
)
def test_what_would_weaken_security_is_refused(section: str, changes: dict[str, Any], named: str, said: str) -> None:
    """kafka-python takes an unknown protocol for PLAINTEXT, and ignores what belongs to another one."""
    options: dict[str, Any] = {"bootstrap_servers": "a:1", "common": dict(SASL)}
    options[section] = options.get(section, {}) | changes

    with pytest.raises(ConfigurationError, match=f"'{section}': '{named}' .*{re.escape(said)}") as caught:
        KafkaBroker(**options)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("common", [{}, {"security_protocol": "SSL"}, SASL | {"security_protocol": "SASL_PLAINTEXT"}])
def test_scheme_of_a_server_has_to_be_the_protocol(common: dict[str, Any]) -> None:
    """The client cuts the scheme off: SASL_SSL:// alone would connect in the clear."""
    with pytest.raises(ConfigurationError, match=r"'security_protocol' is .* say SASL_SSL://"):
        KafkaBroker(bootstrap_servers="SASL_SSL://a:1", common=common)


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("kafka-1:9092, kafka-2:9092", ["kafka-1:9092", "kafka-2:9092"]),
        (["[::1]:9092", "SASL_SSL://broker.example.com:9093"], ["[::1]:9092", "SASL_SSL://broker.example.com:9093"]),
    ],
)
def test_servers_may_be_a_list_or_joined_by_commas(given: str | list[str], servers: list[str]) -> None:
    assert KafkaOptions.parse({"bootstrap_servers": given, "common": SASL}).servers == servers


def test_common_options_reach_the_clients_that_know_them_and_own_ones_win() -> None:
    options = KafkaOptions.parse(
        {
            "bootstrap_servers": "a:1",
            "common": {"security_protocol": "SSL", "linger_ms": 1, "request_timeout_ms": 1},
            "producer": {"request_timeout_ms": 2},
        }
    )
    known = {"security_protocol", "request_timeout_ms"}

    assert options.client_options("producer", known=known) == {"security_protocol": "SSL", "request_timeout_ms": 2}
    assert options.client_options("consumer", known=known) == {"security_protocol": "SSL", "request_timeout_ms": 1}


def test_option_that_a_client_refuses_is_a_mistake_of_configuration(dead_port: int) -> None:
    broker = KafkaBroker(
        bootstrap_servers=f"127.0.0.1:{dead_port}",
        request_timeout_seconds=0.2,
        consumer={"fetch_max_wait_ms": 60_000},
    )

    with pytest.raises(ConfigurationError, match="fetch_max_wait_ms"):
        broker.subscribe(ROUTE, client_id="test")


# --- nobody answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["common", "producer", "consumer"])
def test_file_that_cannot_be_read_is_a_mistake_of_configuration(section: str, tmp_path: Path) -> None:
    """To the client it looks like a broker that is away, and no waiting mends it."""
    missing = tmp_path / "ca.pem"
    options: dict[str, Any] = {
        "bootstrap_servers": "127.0.0.1:9092",
        section: {"ssl_cafile": str(missing), "ssl_keyfile": None},
    }
    options.setdefault("common", {})["security_protocol"] = "SSL"

    with pytest.raises(ConfigurationError, match=f"'{section}': 'ssl_cafile' .*ca.pem"):
        KafkaBroker(**options)

    missing.touch()
    KafkaBroker(**options).close()


def test_building_a_broker_connects_to_nothing() -> None:
    KafkaBroker(bootstrap_servers="host.invalid:9092").close()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda broker: broker.producer(client_id="test"), id="producer"),
        pytest.param(lambda broker: broker.subscribe(ROUTE, client_id="test"), id="subscribe"),
        pytest.param(lambda broker: broker.topics([ROUTE]), id="topics"),
        pytest.param(lambda broker: broker.create_topics([ROUTE]), id="create_topics"),
        pytest.param(lambda broker: broker.positions(ROUTE), id="positions"),
    ],
)
def test_absence_is_an_outage_within_a_bound(dead_port: int, call: Callable[[KafkaBroker], object]) -> None:
    servers = f"127.0.0.1:{dead_port}"
    broker = KafkaBroker(
        bootstrap_servers=servers,
        request_timeout_seconds=0.6,
        common={
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "outbox",
            "sasl_plain_password": PASSWORD,
        },
    )
    started = time.monotonic()

    with pytest.raises(BrokerUnavailableError, match=servers) as caught:
        call(broker)

    assert time.monotonic() - started < 5
    assert PASSWORD not in repr(caught.value)
    broker.close()


# --- what is kept to itself ------------------------------------------------------------------------------------------


def test_password_is_in_no_message_and_no_log(dead_port: int, caplog: pytest.LogCaptureFixture) -> None:
    from kafka.protocol.sasl import SaslAuthenticateRequest

    caplog.set_level(logging.DEBUG, logger="kafka")
    broker = KafkaBroker(
        bootstrap_servers=f"127.0.0.1:{dead_port}",
        request_timeout_seconds=0.2,
        common=SASL | {"ssl_password": PASSWORD},
    )
    with pytest.raises(BrokerUnavailableError):
        broker.topics([ROUTE])
    request = SaslAuthenticateRequest(f"\0outbox\0{PASSWORD}".encode())
    logging.getLogger("kafka.net.connection").debug("%s Request %d: %s", "connection", 1, request)
    logging.getLogger("kafka.protocol.parser").debug("%s Sending request %d %s", "parser", 1, request)
    logging.getLogger("kafka.protocol.parser").debug("%s Send: %r", "parser", request.auth_bytes)

    assert "KafkaAdminClient" in caplog.text
    assert PASSWORD not in caplog.text


def test_password_is_not_repeated_when_an_option_is_wrong() -> None:
    for common in ({"sasl_plain_pasword": PASSWORD}, {"sasl_plain_password": PASSWORD, "nothing": 1}):
        with pytest.raises(ConfigurationError) as caught:
            KafkaBroker(bootstrap_servers="a:1", common=common)
        assert PASSWORD not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        KafkaBroker(bootstrap_servers=f"SASL_SSL://outbox:{PASSWORD}@a:1")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("section", ["common", "consumer"])
def test_isolation_level_is_one_of_two(section: str) -> None:
    for level in ("read_committed", "read_uncommitted"):
        KafkaBroker(bootstrap_servers="a:1", **{section: {"isolation_level": level}})
    with pytest.raises(
        ConfigurationError, match=r"'isolation_level' must be one of read_uncommitted, read_.*'committed'"
    ):
        KafkaBroker(bootstrap_servers="a:1", **{section: {"isolation_level": "committed"}})


# --- what a member says that it owns ---------------------------------------------------------------------------------


def test_member_claims_only_partitions_that_it_has() -> None:
    """kafka-python 3.0 would claim what it was assigned before the group threw it out; see the assignor."""
    from kafka import TopicPartition

    from outbox.brokers.kafka.group import OwnedPartitionsAssignor

    owned = {TopicPartition("topic", 0), TopicPartition("topic", 3)}
    assignor = OwnedPartitionsAssignor()
    assert list(assignor.metadata({"topic"}).owned_partitions) == []
    assignor.consumer = SimpleNamespace(assignment=lambda: owned)

    [claimed] = assignor.metadata({"topic"}).owned_partitions
    assert (claimed.topic, claimed.partitions) == ("topic", [0, 3])

    owned.clear()
    assert list(assignor.metadata({"topic"}).owned_partitions) == []
