"""The brokers that the contract suite runs against, and the repository on every database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.contract.brokers import HARNESSES, BrokerHarness

if TYPE_CHECKING:
    from outbox.storage.repository import OutboxRepository


@pytest.fixture(params=HARNESSES, ids=lambda harness: harness.name)
def harness(request: pytest.FixtureRequest) -> Iterator[BrokerHarness]:
    opened = request.param()
    yield opened
    opened.close()


@pytest.fixture
def repository(alias: str) -> OutboxRepository:
    from tests import factories

    return factories.repository()
