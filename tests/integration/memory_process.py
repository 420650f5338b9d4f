"""A process that receives records by a subscription and says as JSON what they took of its memory; a test starts it."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from outbox.brokers.kafka import KafkaBroker
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError

WITHIN_S = 100.0


def status_kib(name: str) -> int:
    """Return ``VmRSS`` or ``VmHWM``, its peak; ``ru_maxrss`` would count the process that started this one as well."""
    [line] = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1])


def main(servers: str, topic: str, count: int) -> None:
    broker = KafkaBroker(bootstrap_servers=servers)
    route = ServiceRoute(service="agent", table="none", topic=topic, group=f"{topic}-memory")
    idle_kib = status_kib("VmRSS")
    subscription = broker.subscribe(route, client_id="memory")
    sizes: dict[int, int] = {}  # by offset: on a busy machine a member may lose its partition, and get records again
    deadline = time.monotonic() + WITHIN_S
    while len(sizes) < count and time.monotonic() < deadline:
        try:
            received = subscription.receive(max_records=10, timeout=timedelta(seconds=1))
        except BrokerUnavailableError:
            continue
        sizes |= {record.offset: len(record.value or b"") for record in received}
        subscription.commit(received)
    subscription.close()
    broker.close()
    peak_kib = status_kib("VmHWM")
    print(json.dumps({"sizes": [sizes[offset] for offset in sorted(sizes)], "grown_mib": (peak_kib - idle_kib) / 1024}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
