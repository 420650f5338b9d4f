"""Configuration comes before the contract, the contract before the defaults."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from outbox import OnDead, RetryPolicy, event
from outbox.conf import ConsumerOptions, EventOptions, OutboxSettings
from outbox.declarations.contracts import ContractRegistry
from outbox.registry.policies import EventPolicies


@pytest.fixture
def contracts() -> ContractRegistry:
    registry = ContractRegistry()

    @event("plain", service="agent", key="key", registry=registry)
    class Plain(msgspec.Struct):
        key: str

    @event(
        "special",
        service="agent",
        key="key",
        retry=RetryPolicy(base=timedelta(seconds=3), max_attempts=4),
        on_dead=OnDead.PARK,
        time_limit=timedelta(minutes=5),
        registry=registry,
    )
    class Special(msgspec.Struct):
        key: str

    return registry


def policies(contracts: ContractRegistry, **events: EventOptions) -> EventPolicies:
    return EventPolicies(contracts, OutboxSettings(events=events, retry_max_attempts=9))


def test_without_anything_said_the_defaults_hold(contracts: ContractRegistry) -> None:
    for event_type in ("plain", "nobody.registered"):
        assert policies(contracts).retry(event_type).max_attempts == 9
        assert not policies(contracts).parks_key(event_type)


def test_a_contract_says_what_holds_for_its_event(contracts: ContractRegistry) -> None:
    assert policies(contracts).retry("special") == RetryPolicy(base=timedelta(seconds=3), max_attempts=4)
    assert policies(contracts).parks_key("special")


def test_configuration_has_the_last_word(contracts: ContractRegistry) -> None:
    configured = policies(
        contracts,
        special=EventOptions(max_attempts=2, on_dead="continue"),
        plain=EventOptions(base_seconds=0.5, on_dead="park"),
    )

    assert configured.retry("special") == RetryPolicy(base=timedelta(seconds=3), max_attempts=2)
    assert not configured.parks_key("special")
    assert configured.retry("plain").base == timedelta(seconds=0.5)
    assert configured.parks_key("plain")


def test_a_time_limit_is_that_of_the_configuration_then_the_contract_then_the_default(
    contracts: ContractRegistry,
) -> None:
    assert policies(contracts).time_limit("plain") == timedelta(seconds=60)
    assert policies(contracts).time_limit("nobody.registered") == timedelta(seconds=60)
    assert policies(contracts).time_limit("special") == timedelta(minutes=5)

    configured = policies(contracts, special=EventOptions(time_limit_seconds=2), plain=EventOptions(max_attempts=2))
    assert configured.time_limit("special") == timedelta(seconds=2)
    assert configured.time_limit("plain") == timedelta(seconds=60)


def test_the_default_time_limit_can_be_set(contracts: ContractRegistry) -> None:
    configured = OutboxSettings(consumer=ConsumerOptions(handler_time_limit_seconds=5))

    assert EventPolicies(contracts, configured).time_limit("plain") == timedelta(seconds=5)
    assert EventPolicies(contracts, configured).time_limit("special") == timedelta(minutes=5)
