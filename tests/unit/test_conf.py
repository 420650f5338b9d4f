"""``settings.OUTBOX``: defaults, overrides, and every wrong value refused with its place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from outbox.conf import OutboxSettings, on_settings_reset, outbox_settings
from outbox.declarations.backoff import RetryPolicy
from outbox.exceptions import ConfigurationError


def configured(settings: Any, **options: Any) -> OutboxSettings:
    settings.OUTBOX = options
    return outbox_settings()


def test_nothing_configured_is_the_embedded_default(settings: Any) -> None:
    found = configured(settings)

    assert found == OutboxSettings()
    assert (found.broker.backend, found.enabled) == ("table", True)


def test_project_without_the_setting_has_the_defaults(settings: Any) -> None:
    del settings.OUTBOX

    assert outbox_settings() == OutboxSettings()


def test_crashed_relay_is_taken_over_within_ten_seconds_by_default() -> None:
    leases = OutboxSettings().leases

    assert leases.ttl_seconds + leases.heartbeat_seconds <= 10
    assert leases.heartbeat_seconds * 2 < leases.ttl_seconds, "one missed beat must not cost the lease"


def test_values_are_read_from_upper_case_keys(settings: Any) -> None:
    found = configured(
        settings,
        NAMESPACE="shop",
        ENABLED=False,
        BROKER={"BACKEND": "memory", "OPTIONS": {"partitions": 2}},
        SERVICES={"agent": {"TABLE": "t", "DATABASE": "other"}},
        RELAY={"BATCH_SIZE": 7, "REDELIVER_AFTER_SECONDS": 60},
        CONSUMER={"BATCH_BYTES": 1},
        LEASES={"TTL_SECONDS": 4.5},
    )

    assert (found.namespace, found.enabled) == ("shop", False)
    assert (found.broker.backend, found.broker.options) == ("memory", {"partitions": 2})
    assert (found.services["agent"].table, found.services["agent"].topic) == ("t", None)
    assert (found.relay.batch_size, found.relay.redeliver_after_seconds, found.relay.in_flight_batches) == (7, 60.0, 2)
    assert (found.consumer.batch_bytes, found.leases.ttl_seconds) == (1, 4.5)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"NAMESPACES": "x"}, "NAMESPACES"),
        ({"namespace": "x"}, "namespace"),
        ({"RELAY": {"BATCHSIZE": 1}}, "BATCHSIZE` - at `$.RELAY"),
        ({"RELAY": {"BATCH_SIZE": "7"}}, "$.RELAY.BATCH_SIZE"),
        ({"RELAY": {"BATCH_SIZE": 0}}, "$.RELAY.BATCH_SIZE"),
        ({"RELAY": {"SWEEP_INTERVAL_SECONDS": 0}}, "$.RELAY.SWEEP_INTERVAL_SECONDS"),
        ({"LEASES": {"TTL_SECONDS": -1}}, "$.LEASES.TTL_SECONDS"),
        ({"CONSUMER": []}, "$.CONSUMER"),
        ({"SERVICES": {"agent": {"TABEL": "t"}}}, "TABEL"),
        ({"SERVICES": {"agent": {"TABLE": 1}}}, "TABLE"),
        ({"EVENTS": {"a.b": {"MAX_ATTEMPTS": 0}}}, "MAX_ATTEMPTS"),
        ({"EVENTS": {"a.b": {"JITTER": 1.5}}}, "JITTER"),
        ({"EVENTS": {"a.b": {"TIME_LIMIT_SECONDS": 0}}}, "TIME_LIMIT_SECONDS"),
        ({"CONSUMER": {"HANDLER_TIME_LIMIT_SECONDS": -1}}, "$.CONSUMER.HANDLER_TIME_LIMIT_SECONDS"),
        ({"RETRY_JITTER": 2}, "$.RETRY_JITTER"),
        ({"MAX_PAYLOAD_BYTES": None}, "$.MAX_PAYLOAD_BYTES"),
        ({"BROKER": "kafka"}, "$.BROKER"),
        ({"ENABLED": "no"}, "$.ENABLED"),
        ({"RELAY": {"BATCH_SIZE": 0}}, "(OUTBOX['RELAY']['BATCH_SIZE'] is 0)"),
        ({"EVENTS": {"a.a": {}, "a.b": {"JITTER": 1.5}}}, "(OUTBOX['EVENTS']['a.b']['JITTER'] is 1.5)"),
        ({"SERVICES": {"agent": {"TABEL": "t"}}}, "(OUTBOX['SERVICES']['agent']['TABEL'] is 't')"),
        ({"ENABLED": "maybe"}, "(OUTBOX['ENABLED'] is 'maybe')"),
        ({"RETRY_BASE_SECONDS": float("nan")}, "(OUTBOX['RETRY_BASE_SECONDS'] is nan)"),
        ({"RETRY_CAP_SECONDS": float("inf")}, "(OUTBOX['RETRY_CAP_SECONDS'] is inf)"),
        ({"RETRY_MAX_ATTEMPTS": 2**31}, "(OUTBOX['RETRY_MAX_ATTEMPTS'] is 2147483648)"),
        ({"EVENTS": {"a.b": {"MAX_ATTEMPTS": 2**31}}}, "['MAX_ATTEMPTS'] is 2147483648)"),
        ({"RELAY": {"POLL_INTERVAL_MS": 10**30}}, "$.RELAY.POLL_INTERVAL_MS"),
        ({"RELAY": {"IN_FLIGHT_BATCHES": 1001}}, "$.RELAY.IN_FLIGHT_BATCHES"),
        ({"RELAY": {"POLL_INTERVAL_MS": 900, "MAX_POLL_INTERVAL_MS": 800}}, "POLL_INTERVAL_MS is 900"),
        ({"RELAY": {"WAKE_UP_FOLDER": "run/outbox"}}, "WAKE_UP_FOLDER is 'run/outbox'"),
        ({"CONSUMER": {"WAIT_MIN_MS": 2_000, "WAIT_MAX_SECONDS": 1}}, "WAIT_MIN_MS is 2000"),
        ({"MAX_PAYLOAD_BYTES": 2**32}, "(OUTBOX['MAX_PAYLOAD_BYTES'] is 4294967296)"),
    ],
)
def test_wrong_value_is_refused_with_its_place(settings: Any, options: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"settings\.OUTBOX: ") as caught:
        configured(settings, **options)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    "broker",
    [{"OPTIONS": "Sw0rdfish"}, {"OPTION": {"password": "Sw0rdfish"}}, {"PASSWORD": "Sw0rdfish"}, "Sw0rdfish"],
)
def test_wrong_value_of_the_broker_is_not_repeated(settings: Any, broker: object) -> None:
    with pytest.raises(ConfigurationError, match=r"OUTBOX\['BROKER'\]") as caught:
        configured(settings, BROKER=broker)
    assert "Sw0rdfish" not in str(caught.value)


@pytest.mark.parametrize("whole", [None, [], "x", 1])
def test_setting_that_is_no_dict_is_refused(settings: Any, whole: Any) -> None:
    settings.OUTBOX = whole
    with pytest.raises(ConfigurationError, match=r"settings\.OUTBOX"):
        outbox_settings()


def test_settings_are_read_again_when_they_change(settings: Any) -> None:
    calls: list[int] = []
    on_settings_reset(lambda: calls.append(1))

    assert configured(settings, NAMESPACE="one").namespace == "one"
    assert configured(settings, NAMESPACE="two").namespace == "two"
    assert len(calls) == 2


# --- retries -----------------------------------------------------------------------------------------------------


def policy(base: float = 1, cap: float = 600, attempts: int = 20, jitter: float = 0.2) -> RetryPolicy:
    return RetryPolicy(timedelta(seconds=base), timedelta(seconds=cap), attempts, jitter)


@pytest.mark.parametrize(
    ("options", "declared", "expected"),
    [
        ({}, None, policy()),
        ({"RETRY_MAX_ATTEMPTS": 5, "RETRY_CAP_SECONDS": 30}, None, policy(cap=30, attempts=5)),
        ({"RETRY_MAX_ATTEMPTS": 5}, policy(base=2, attempts=3), policy(base=2, attempts=3)),
        ({"EVENTS": {"a.b": {"MAX_ATTEMPTS": 4}}}, policy(base=2, attempts=3), policy(base=2, attempts=4)),
        ({"EVENTS": {"a.b": {"JITTER": 0}}}, None, policy(jitter=0.0)),
        ({"EVENTS": {"a.b": {"BASE_SECONDS": 5, "CAP_SECONDS": 9}}}, None, policy(base=5, cap=9)),
        ({"EVENTS": {"a.b": {"BASE_SECONDS": 900}}}, None, policy(base=900, cap=900)),
        ({"EVENTS": {"other": {"MAX_ATTEMPTS": 4}}}, None, policy()),
    ],
)
def test_configuration_goes_before_contract_and_contract_before_defaults(
    settings: Any, options: dict[str, Any], declared: RetryPolicy | None, expected: RetryPolicy
) -> None:
    assert configured(settings, **options).retry_policy("a.b", declared) == expected
