"""A consumer that is frozen in the middle of its transaction: others go on beside the rows that it has locked."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.isolation import (
    SHORT_LEASES,
    are_consumed,
    business_row_of,
    ids_of,
    interruptions,
    longest_delay_s,
)
from tests.acceptance.probe.names import WAITING

OTHERS_DELAY_S = 5.0
GRACE_S = 4.0


def partitions(installation: Installation) -> dict[int, str]:
    """Return what each consumer says that it holds, by process id."""
    return dict(installation.database.query("SELECT pid, partitions FROM outbox_workers WHERE role = 'consumer'"))


def seen_at(installation: Installation, pid: int) -> object:
    """Return when a consumer was seen last."""
    return installation.database.value(
        "SELECT MAX(seen_at) FROM outbox_workers WHERE role = 'consumer' AND pid = %s", [pid]
    )


@pytest.mark.parametrize(
    ("database", "broker", "time_limit_s"),
    [
        ("mariadb", "table", 14.0),
        ("mysql", "table", 14.0),
        ("postgres", "table", 14.0),
        ("mariadb", "kafka", 20.0),  # its partitions move 6 s later
        ("mysql", "kafka", 20.0),
        ("postgres", "kafka", 20.0),
    ],
)
def test_successor_of_a_frozen_consumer_goes_on_beside_its_locks(
    install: Install, database: str, broker: str, time_limit_s: float
) -> None:
    """The server ends the frozen session after time limit and grace; the frozen one finds all done when it wakes."""
    consumer_options = {"HANDLER_TIME_LIMIT_SECONDS": time_limit_s, "HUNG_HANDLER_GRACE_SECONDS": GRACE_S}
    options = {"LEASES": SHORT_LEASES, "CONSUMER": consumer_options}
    installation = install(database=database, broker=broker, options=options)
    publisher = installation.publisher()
    (first,) = publisher.publish(("step", {"key": "first"}))
    business_row = business_row_of(installation, first)
    locked = [
        first,
        *publisher.publish(
            ("misbehaving", {"key": "frozen", "act": "wait", "row": business_row}),
            ("step", {"key": "frozen", "n": 1}),
            *[("step", {"key": f"k{n}", "n": n}) for n in range(5)],
        ),
    ]
    relay = installation.relay()
    installation.wait(lambda: installation.statuses().keys() == {"published"}, "all is sent", alive=[relay])
    installation.hold(WAITING)
    frozen = installation.consumer()
    installation.wait_held(WAITING)
    held = partitions(installation)[frozen.pid]
    frozen.signal(signal.SIGSTOP)
    installation.release(WAITING)

    successor = installation.consumer()
    workers = [relay, successor]
    installation.wait(lambda: partitions(installation).get(successor.pid) == held, "it took over", alive=workers)
    since = installation.database.value(f"SELECT {installation.database.now}")
    contended, *fresh = publisher.publish(
        ("misbehaving", {"key": "contended", "act": "write_row", "row": business_row}),
        *[("step", {"key": f"fresh-{n}", "n": n}) for n in range(20)],
    )
    installation.wait(lambda: are_consumed(installation, fresh), "the other keys went on", alive=workers)
    assert not {row.status for row in installation.rows() if row.event_id in locked} & {"consumed", "dead"}
    besides = ids_of(installation, [*locked, contended])
    assert longest_delay_s(installation, besides=besides, since=since) <= OTHERS_DELAY_S
    installation.wait_until_done(alive=workers)
    assert not interruptions(installation)
    installation.check()

    before = seen_at(installation, frozen.pid)
    frozen.signal(signal.SIGCONT)
    workers.append(frozen)
    installation.wait(lambda: seen_at(installation, frozen.pid) != before, "the frozen one woke up", alive=workers)
    publisher.publish(*[("step", {"key": f"k{n}", "n": n}) for n in range(20)])
    installation.wait_until_done(alive=workers)
    assert not interruptions(installation)
    installation.check()
    for worker in workers:
        worker.stop()
