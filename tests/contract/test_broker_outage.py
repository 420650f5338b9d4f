"""Outages of a broker that a test can take away without harm to others.

Kafka's turn is in ``tests/integration/test_kafka_outage.py``, which takes the server away.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.brokers import MemoryHarness
from tests.contract.outage import outage_is_said_and_survived


@pytest.fixture
def harness() -> Iterator[MemoryHarness]:
    opened = MemoryHarness()
    yield opened
    opened.close()


def test_outage_is_said_and_survived(harness: MemoryHarness) -> None:
    outage_is_said_and_survived(harness)
