"""Foreign records in floods: hundreds of small ones, and ones as large as the broker takes or as compression allows."""

from __future__ import annotations

import random
from typing import Final

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


@injects("flood-small", "flood-large", "flood-huge")
def _flood(cluster: Cluster, fault: TimedFault) -> str:
    """Put them on one partition; the huge ones on the agent service's topic, whose limit is Kafka's own."""
    dice = random.Random(fault.dice)
    is_huge = fault.name == "flood-huge"
    if fault.name == "flood-small":
        values = [b'{"n": %d}' % number for number in range(_SMALL)]
    elif is_huge:
        values = [dice.randbytes(_HUGE_BYTES) for _ in range(_HUGE)]
    else:
        values = [dice.randbytes(TOPIC_LIMIT - 2_000) for _ in range(_LARGE)]
        with cluster.database() as database:  # together they are more than one statement may be
            inflated_bytes = int(database.value("SELECT @@max_allowed_packet")) // _INFLATED + _MEBIBYTE // 8
        values += [bytes(inflated_bytes)] * _INFLATED
    said = put(
        cluster,
        [ForeignRecord(f"{fault.name}-{fault.at_s}-{n}".encode(), value) for n, value in enumerate(values)],
        dice=dice,
        service="agent" if is_huge else "probe",
        partition=dice.randrange(PARTITIONS),
        max_request_size=64 * _MEBIBYTE,
        compression_type=None if is_huge else "gzip",
    )
    return f"{said}; {sum(map(len, values)):,} bytes"
