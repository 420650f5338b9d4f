"""What several modules here are about: consumers and relays, and webhooks with the notifications that go to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from outbox.brokers.memory import MemoryBroker
    from outbox.consumer.loop import Consumer
    from outbox.relay.loop import Relay
    from tests.contract.brokers import KafkaHarness
    from tests.relays import MakeRelay
    from tests.toys import ManualClock, Toys
    from tests.webhooks import WebhookServer

pytest.register_assert_rewrite(
    "tests.integration.bustle",
    "tests.integration.misbehaving",
    "tests.integration.repository_model",
    "tests.integration.world",
)


@pytest.fixture
def consumer(alias: str, toys: Toys) -> Consumer:
    from tests import factories

    return factories.consumer(alias, toys)


@pytest.fixture
def make_relay(alias: str, broker: MemoryBroker, toys: Toys, clock: ManualClock) -> MakeRelay:
    """Return a function that makes a relay; its options are those of ``factories.relay``, and ``broker``."""
    from tests import factories

    def make(**options: Any) -> Relay:
        return factories.relay(alias, options.pop("broker", broker), toys, clock, **options)

    return make


@pytest.fixture
def harness() -> Iterator[KafkaHarness]:
    """Return topics of the test's own on the real Kafka."""
    from tests.contract.brokers import KafkaHarness

    opened = KafkaHarness()
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    """Return a webhook's server, which answers as the test says."""
    from tests.webhooks import webhook_server

    with webhook_server() as running:
        yield running


@pytest.fixture
def emptied_notifications(alias: str) -> Iterator[None]:
    """Delete records and channels after the test."""
    from tests import notifications

    yield
    notifications.empty(alias)
