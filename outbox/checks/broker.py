"""The broker that ``settings.OUTBOX`` names: can it be built, and does it take the records that it will be given?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning

from outbox.brokers import BACKENDS, load_backend
from outbox.brokers.base import Broker
from outbox.checks.declarations import outbox_models, valid_routes
from outbox.checks.options import SETTING, configured
from outbox.conf import OutboxSettings
from outbox.workers.build import open_broker

_KAFKA_RECORD_BYTES: Final = 1_048_576
"""What Kafka's producer takes unless ``max_request_size`` says otherwise."""
_RECORD_OVERHEAD_BYTES: Final = 8 * 1024
"""Envelope, key and headers beside the payload, generously."""


def check_broker() -> list[CheckMessage]:
    """Load the backend and build it; nothing connects."""
    options = configured()
    if options is None:
        return []
    name = options.broker.backend
    try:
        backend = load_backend(name)
    except Exception as error:  # noqa: BLE001 - a module of the project may raise anything; a check never does
        return [
            Error(
                f"BROKER: {_said(error)}",
                hint=f"Choose one of {', '.join(map(repr, BACKENDS))} for BROKER['BACKEND'], and install its client "
                f"library (Kafka: kafka-python).",
                obj=SETTING,
                id="outbox.E021",
            )
        ]
    try:
        with open_broker():
            pass
    except Exception as error:  # noqa: BLE001 - as above
        return [
            Error(
                f"BROKER: {_said(error)}",
                hint=f"Correct BROKER['OPTIONS'] of {name!r}; docs/configuration.md lists them.",
                obj=SETTING,
                id="outbox.E022",
            )
        ]
    return [
        *_record_size(options, backend),
        *_whole_payloads(options, backend),
        *_codecs(backend),
        *_client_library(backend),
        *_memory(backend),
    ]


def _record_size(options: OutboxSettings, backend: type[Broker]) -> Iterator[CheckMessage]:
    if _path(backend) != BACKENDS["kafka"]:
        return
    limit = _producer_limit(options)
    largest = min(options.reference_bytes, options.max_payload_bytes) + _RECORD_OVERHEAD_BYTES
    if limit is not None and largest > limit:
        yield Error(
            f"payloads of up to {largest - _RECORD_OVERHEAD_BYTES:,} bytes travel inside their record, and with "
            f"{_RECORD_OVERHEAD_BYTES:,} bytes around them the Kafka producer refuses those above "
            f"max_request_size = {limit:,}: their events would die.",
            hint="Lower REFERENCE_BYTES, so that large payloads stay in their row, or raise "
            "BROKER['OPTIONS']['producer']['max_request_size'] together with the topics' max.message.bytes.",
            obj=SETTING,
            id="outbox.E023",
        )


def _producer_limit(options: OutboxSettings) -> int | None:
    """Return the largest record that the producer takes, None where the option is no number."""
    given = options.broker.options
    limit = {**given.get("common", {}), **given.get("producer", {})}.get("max_request_size", _KAFKA_RECORD_BYTES)
    return limit if isinstance(limit, int) else None


def _whole_payloads(options: OutboxSettings, backend: type[Broker]) -> Iterator[CheckMessage]:
    """Look for services whose payloads travel whole and are larger than the producer takes."""
    if _path(backend) != BACKENDS["kafka"]:
        return
    limit = _producer_limit(options)
    for service, route in valid_routes().items():
        if route.whole_payload_bytes is None or limit is None:
            continue
        largest = min(route.whole_payload_bytes, options.max_payload_bytes)
        if largest + _RECORD_OVERHEAD_BYTES > limit:
            yield Error(
                f"payloads of service {service!r} travel inside their records up to {largest:,} bytes "
                f"(whole_payload_bytes of its model), and with {_RECORD_OVERHEAD_BYTES:,} bytes around them the Kafka "
                f"producer refuses those above max_request_size = {limit:,}: their events would die.",
                hint="Raise BROKER['OPTIONS']['producer']['max_request_size'] together with max.message.bytes of the "
                "topic, or lower whole_payload_bytes, so that such an event is refused when it is published.",
                obj=outbox_models()[service][0],
                id="outbox.E024",
            )


def _codecs(backend: type[Broker]) -> Iterator[CheckMessage]:
    if _path(backend) != BACKENDS["kafka"]:
        return
    from outbox.brokers.kafka import codecs as kafka_codecs  # noqa: PLC0415 - the client may not be installed with other backends

    if missing := kafka_codecs.missing():
        yield CheckWarning(
            f"BROKER: no library for {', '.join(missing)} is installed: a consumer stops at the first record that "
            "another client compresses so.",
            hint=f"Run {kafka_codecs.how_to_get(missing)}; silence this where nobody else writes to the topics.",
            obj=SETTING,
            id="outbox.W022",
        )


def _client_library(backend: type[Broker]) -> Iterator[CheckMessage]:
    """Ask for the version of the client library, and try its parts that are used and are not public."""
    if _path(backend) != BACKENDS["kafka"]:
        return
    from outbox.brokers.kafka import private as kafka_private  # noqa: PLC0415 - as above
    from outbox.brokers.kafka import ways as kafka_ways  # noqa: PLC0415 - as above

    install = f"Install {kafka_private.REQUIREMENT}."
    if version := kafka_private.untested_version():
        yield CheckWarning(
            f"BROKER: kafka-python {version} is installed and was not tested; parts that are not public are used.",
            hint=f"{install} Silence this when your own tests have passed with it.",
            obj=SETTING,
            id="outbox.W023",
        )
    for part, fault in kafka_ways.faults().items():
        yield CheckWarning(
            f"BROKER: kafka-python is not as expected: {fault}. Its public interface is used: {part.value}.",
            hint=install,
            obj=SETTING,
            id="outbox.W024",
        )


def _memory(backend: type[Broker]) -> Iterator[CheckMessage]:
    if _path(backend) == BACKENDS["memory"]:
        yield CheckWarning(
            "BROKER: the memory broker keeps its records in one process; relay and consumer in two never meet.",
            hint="It is for tests. Use 'table' where there is one database and no Kafka, else 'kafka'.",
            obj=SETTING,
            id="outbox.W021",
        )


def _path(backend: type[Broker]) -> str:
    return f"{backend.__module__}.{backend.__qualname__}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
