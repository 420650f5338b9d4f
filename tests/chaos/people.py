"""People at the admin: they replay, mend and give up dead events, and pause workers, in the middle of everything."""

from __future__ import annotations

import random

import MySQLdb

from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.schedule import TimedFault


def _dead(cluster: Cluster, condition: str) -> list[int]:
    with cluster.database() as database:
        found = database.query(
            f"SELECT id FROM probe_outbox_messages WHERE status = 'dead' AND resolved_at IS NULL AND {condition}"
        )
    if not found:
        raise MissedError("no such event is dead")
    return [row[0] for row in found]


@injects("replay")
def _replay(cluster: Cluster, fault: TimedFault) -> str:
    dead = _dead(cluster, "event_type <> 'probe.parking' AND event_type NOT LIKE 'probe.faulty%'")
    ids = random.Random(fault.dice).sample(dead, min(5, len(dead)))
    cluster.ledger.replayed += cluster.operator.replay(*ids)
    return f"rows {sorted(ids)}"


@injects("mend")
def _mend(cluster: Cluster, fault: TimedFault) -> str:
    parked = _dead(cluster, "event_type = 'probe.parking'")
    row_id = parked[int(fault.dice * len(parked))]
    with cluster.database() as database:
        database.execute(
            "UPDATE probe_outbox_messages SET payload = REPLACE(payload, '\"discard\"', '\"ok\"')"
            f" WHERE id = {row_id} AND status = 'dead'"
        )
    cluster.ledger.replayed += cluster.operator.replay(row_id)
    return f"row {row_id}"


@injects("give-up")
def _give_up(cluster: Cluster, fault: TimedFault) -> str:
    parked = _dead(cluster, "event_type = 'probe.parking' AND payload LIKE '%\"discard\"%'")
    row_id = parked[int(fault.dice * len(parked))]
    cluster.operator.give_up(row_id)
    return f"row {row_id}"


@injects("pause-relay", "pause-consumer")
def _pause(cluster: Cluster, fault: TimedFault) -> str:
    service = "probe" if fault.dice < 0.7 else "agent"
    column = "relay_paused" if fault.name == "pause-relay" else "consumer_paused"
    _switch(cluster, service, column, paused=True)
    cluster.rest(fault.length_s)
    while not cluster.over.is_set():
        try:
            _switch(cluster, service, column, paused=False)
        except (MissedError, MySQLdb.Error):
            cluster.rest(1)
        else:
            break
    return service


def _switch(cluster: Cluster, service: str, column: str, *, paused: bool) -> None:
    with cluster.database() as database:
        database.execute(
            f"INSERT INTO outbox_service_switches (service, {column}, reason) VALUES (%s, %s, 'chaos')"
            f" ON DUPLICATE KEY UPDATE {column} = VALUES({column})",
            [service, int(paused)],
        )
