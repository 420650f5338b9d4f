"""Foreign records in floods: hundreds of small ones, and ones as large as the broker takes or as compression allows."""

from __future__ import annotations

import random
from typing import Any, Final

from tests.chaos.cluster import Cluster
from tests.chaos.faults import injects
from tests.chaos.foreign_records import PARTITIONS, ForeignRecord, put
from tests.chaos.schedule import TimedFault
from tests.chaos.writers import TOPIC_LIMIT

_SMALL: Final = 400
_LARGE: Final = 10
_INFLATED: Final = 20
_HUGE: Final = 30
_HUGE_BYTES: Final = 900_000
_MEBIBYTE: Final = 1024 * 1024


@injects("flood-small")
def _flood_with_small(cluster: Cluster, fault: TimedFault) -> str:
    return _flood(cluster, fault, "probe", [b'{"n": %d}' % number for number in range(_SMALL)])


@injects("flood-large")
def _flood_with_large(cluster: Cluster, fault: TimedFault) -> str:
    """Flood the probe service's topic up to its limit, and beyond it as compression allows; and the agent service's.

    That has the limit of Kafka itself: its records are of 0.9 MB, and no compression makes them smaller.
    """
    dice = random.Random(fault.dice)
    with cluster.database() as database:  # together they are more than one statement may be
        inflated_bytes = int(database.value("SELECT @@max_allowed_packet")) // _INFLATED + _MEBIBYTE // 8
    large = [dice.randbytes(TOPIC_LIMIT - 2_000) for _ in range(_LARGE)]
    said = _flood(cluster, fault, "probe", [*large, *[bytes(inflated_bytes)] * _INFLATED], compression_type="gzip")
    huge = _flood(cluster, fault, "agent", [dice.randbytes(_HUGE_BYTES) for _ in range(_HUGE)])
    return f"{said}; topic of agent: {huge}"


def _flood(cluster: Cluster, fault: TimedFault, service: str, values: list[bytes], **options: Any) -> str:
    """Put records on one partition."""
    dice = random.Random(fault.dice)
    name = f"{fault.name}-{service}-{fault.at_s}"
    said = put(
        cluster,
        [ForeignRecord(f"{name}-{number}".encode(), value) for number, value in enumerate(values)],
        dice=dice,
        service=service,
        partition=dice.randrange(PARTITIONS),
        max_request_size=64 * _MEBIBYTE,
        **options,
    )
    return f"{said}; {sum(map(len, values)):,} bytes"
