"""The brokers that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.brokers import HARNESSES, BrokerHarness


@pytest.fixture(params=HARNESSES, ids=lambda harness: harness.name)
def harness(request: pytest.FixtureRequest) -> Iterator[BrokerHarness]:
    opened = request.param()
    yield opened
    opened.close()
