"""Hosts that stand still: a consumer is stopped in the middle of a handler, with an open transaction."""

from __future__ import annotations

from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.handlers import caught_in_handler
from tests.chaos.ledger import Hold
from tests.chaos.schedule import TimedFault


@injects("host-freeze")
def _freeze_in_handler(cluster: Cluster, fault: TimedFault) -> str:
    pid, key = caught_in_handler(cluster, fault)
    member = next((each for each in cluster.crew.running("consumer") if each.worker.pid == pid), None)
    if member is None:
        raise MissedError("the consumer has gone")
    with cluster.crew.frozen(member):
        cluster.rest(fault.length_s)
    began_at, ended_at = member.froze[-1]
    cluster.ledger.holds.append(Hold(began_at, ended_at, fault.name, frozenset({key}), frozen_pid=pid))
    return str(member)
