"""Workers that are frozen in the middle of their work and go on when others have long taken over."""

from __future__ import annotations

import signal

from tests.acceptance.conftest import ON_EACH_MYSQL, Install
from tests.acceptance.harness import HOLDING_KAFKA, Installation
from tests.acceptance.topics import group_members

pytestmark = ON_EACH_MYSQL


def test_relay_that_slept_through_its_lease_overwrites_nothing(install: Install) -> None:
    """It wakes up with acknowledgements in hand for rows that another relay sent and a consumer put back meanwhile."""
    installation = install(
        backend=HOLDING_KAFKA,
        options={"LEASES": {"TTL_SECONDS": 1.0, "HEARTBEAT_SECONDS": 0.3}, "RETRY_BASE_SECONDS": 3.0},
    )
    failing = installation.publish(*[("step", {"key": f"k{n % 5}", "n": n, "fail_times": 1}) for n in range(5)])
    installation.publish(*[("step", {"key": f"k{n % 5}", "n": n}) for n in range(5, 20)])
    installation.hold("marks")
    sleeper = installation.relay()
    installation.wait_held("marks")
    sleeper.signal(signal.SIGSTOP)
    installation.release("marks")
    workers = [installation.relay(), installation.consumer()]
    installation.wait(
        lambda: sum(row.retry_count for row in installation.rows()) == len(failing),
        "the first attempts failed",
        alive=workers,
    )
    sleeper.signal(signal.SIGCONT)
    installation.wait_until_done(alive=[sleeper, *workers])
    installation.check(retried=failing)
    sleeper.stop()


def test_consumer_that_slept_through_its_session_repeats_nothing(installation: Installation) -> None:
    """It is frozen inside a transaction; the group has given its partitions away when it wakes up and commits."""
    assert installation.kafka is not None
    relay, sleeper = installation.relay(), installation.consumer()
    installation.publish(*[("step", {"key": f"k{n}", "n": n, "sleep_ms": 50}) for n in range(60)])
    installation.wait(lambda: len(installation.begun()) > 5, "the consumer was in its work", alive=[relay, sleeper])
    sleeper.signal(signal.SIGSTOP)
    group = (installation.kafka, installation.group())
    (member,) = group_members(*group)["members"]
    second = installation.consumer()
    installation.wait(
        lambda: member["member_id"] not in {each["member_id"] for each in group_members(*group)["members"]},
        "the group has thrown the sleeper out",
        alive=[relay, second],
    )
    sleeper.signal(signal.SIGCONT)
    installation.wait_until_done(alive=[relay, sleeper, second])
    installation.check()
    # It is a member again.
    installation.wait(lambda: len(group_members(*group)["members"]) == 2, "the sleeper is back", alive=[sleeper])
    for worker in (sleeper, second):
        worker.stop()
