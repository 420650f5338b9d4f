"""The consumer and the relays that the modules here are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from outbox.brokers.memory import MemoryBroker
    from outbox.consumer import Consumer
    from outbox.relay import Relay
    from tests.relays import MakeRelay
    from tests.toys import ManualClock, Toys


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
