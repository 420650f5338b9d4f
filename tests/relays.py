"""What tests of the relay share: relays are let work, and what they sent is read from the broker."""

from __future__ import annotations

from collections.abc import Callable

from outbox.brokers.memory import MemoryBroker
from outbox.relay.loop import Relay
from outbox.wire.envelope import decode_message
from tests import factories

TOPIC = "smartflow.agent.outbox"

MakeRelay = Callable[..., Relay]


def sent_ids(broker: MemoryBroker) -> list[int]:
    return [decode_message(record.value).outbox_id for record in broker.records(TOPIC)]


def step_until_idle(relay: Relay) -> int:
    """Let the relay work until there is nothing to do; return how many steps it took."""
    for steps in range(1, 1000):
        if not relay.step():
            return steps
    raise AssertionError("the relay never comes to rest")


def make_relay_after(crashed: Relay, make_relay: MakeRelay) -> Relay:
    """Return a new relay after another one ended without a word, its leases run out."""
    factories.expire(crashed._repository.route.database, crashed._leases.presence.worker_id)
    return make_relay()
