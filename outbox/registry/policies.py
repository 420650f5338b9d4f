"""What holds for an event type when it fails: configuration first, then its contract, then the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from outbox.conf import OutboxSettings
from outbox.declarations.backoff import RetryPolicy
from outbox.declarations.contracts import ContractRegistry, EventContract, OnDead
from outbox.exceptions import UnknownEventTypeError


@dataclass(frozen=True, slots=True)
class EventPolicies:
    """The policies of every event type; one that nobody registered has the defaults."""

    contracts: ContractRegistry
    configured: OutboxSettings

    def retry(self, event_type: str) -> RetryPolicy:
        """Return how an event is retried."""
        contract = self._contract(event_type)
        return self.configured.retry_policy(event_type, contract.retry if contract else None)

    def time_limit(self, event_type: str) -> timedelta:
        """Return how long one call of its handler may take."""
        contract = self._contract(event_type)
        return self.configured.time_limit(event_type, contract.time_limit if contract else None)

    def longest_call(self, service: str) -> timedelta:
        """Return how long the slowest handler of a service may take until its process ends over it."""
        limits = [self.time_limit(contract.event_type) for contract in self.contracts.of_service(service)]
        default = timedelta(seconds=self.configured.consumer.handler_time_limit_seconds)
        return max([default, *limits]) + timedelta(seconds=self.configured.consumer.hung_handler_grace_seconds)

    def parks_key(self, event_type: str) -> bool:
        """Say whether the death of an event holds back the later events of its key."""
        options = self.configured.events.get(event_type)
        if options is not None and options.on_dead is not None:
            return options.on_dead == OnDead.PARK
        contract = self._contract(event_type)
        return contract is not None and contract.on_dead is OnDead.PARK

    def _contract(self, event_type: str) -> EventContract[Any] | None:
        try:
            return self.contracts.get(event_type)
        except UnknownEventTypeError:
            return None
