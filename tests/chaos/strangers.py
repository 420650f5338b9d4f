"""Strangers: they hold locks, kill statements, lose records, and put records and rows where nobody published any."""

from __future__ import annotations

import random
import uuid
from contextlib import closing
from typing import Any

import msgspec
from MySQLdb import OperationalError

from outbox.wire.envelope import Envelope, encode_message, headers_of
from tests.acceptance.databases import MariaDBDatabase
from tests.acceptance.test_lost_connections import NO_SUCH_THREAD, cut_connections
from tests.chaos.cluster import Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.foreign_records import NO_MESSAGE, ForeignRecord, answers_of, producing, put
from tests.chaos.ledger import SqlRow
from tests.chaos.schedule import TimedFault

# --- the database ------------------------------------------------------------------------------------------------


@injects("kill-connections")
def _kill_connections(cluster: Cluster, fault: TimedFault) -> str:
    with cluster.database() as database:
        return f"{cut_connections(database, 'mariadb')} connections"


@injects("kill-queries")
def _kill_queries(cluster: Cluster, fault: TimedFault) -> str:
    running = (
        "SELECT id FROM information_schema.processlist"
        " WHERE db = DATABASE() AND command = 'Query' AND id <> CONNECTION_ID()"
    )
    killed = 0
    end_s = cluster.elapsed_s + fault.length_s
    with cluster.database() as database:
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            for (connection,) in database.query(running):
                try:
                    database.execute(f"KILL QUERY {connection}")
                except OperationalError as error:
                    if error.args[0] != NO_SUCH_THREAD:
                        raise
                killed += 1
            cluster.rest(0.03)
    return f"{killed} statements"


@injects("stranger-locks")
def _lock_rows(cluster: Cluster, fault: TimedFault) -> str:
    """Lock unfinished rows from the newest down, with the gaps between them or without; or the relays' leases."""
    with cluster.database() as database, closing(database.connect()) as connection:
        connection.autocommit(False)
        cursor = connection.cursor()
        try:
            locked = _lock(cursor, fault.dice)
        except OperationalError as error:
            raise MissedError(f"no locks to be had: {error}") from error
        cluster.rest(fault.length_s)
        connection.rollback()
    return f"{locked} rows"


def _lock(cursor: Any, dice: float) -> int:
    if dice < 0.2:
        return int(cursor.execute("SELECT shard FROM outbox_shard_leases FOR UPDATE"))
    isolation = "READ COMMITTED" if dice < 0.6 else "REPEATABLE READ"
    cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
    return int(
        cursor.execute(
            "SELECT id FROM probe_outbox_messages WHERE status IN ('pending', 'published')"
            " ORDER BY id DESC LIMIT 40 FOR UPDATE"
        )
    )


@injects("deadlocks")
def _lock_in_the_other_order(cluster: Cluster, fault: TimedFault) -> str:
    """Lock unfinished rows one by one from the newest down: workers go up. The one that has written less loses."""
    end_s = cluster.elapsed_s + fault.length_s
    with cluster.database() as database, closing(database.connect()) as connection:
        before = _deadlocks(database)
        connection.autocommit(False)
        cursor = connection.cursor()
        while cluster.elapsed_s < end_s and not cluster.over.is_set():
            try:
                _write_much(cursor)
                for row_id in _newest_unfinished(database):
                    cursor.execute(f"SELECT id FROM probe_outbox_messages WHERE id = {row_id} FOR UPDATE")
                    cluster.rest(0.02)
            except OperationalError as error:
                if error.args[0] not in _LOST_LOCKS:
                    raise
            connection.rollback()
            cluster.rest(0.1)
        return f"{_deadlocks(database) - before} deadlocks"


_LOST_LOCKS = (1205, 1213)


def _write_much(cursor: Any) -> None:
    """Have the transaction change so many rows that it is not the one to lose; they are rolled back."""
    values = ", ".join(["('never', 'committed')"] * 500)
    cursor.execute(f"INSERT INTO probe_business_rows (event_id, message_key) VALUES {values}")


def _newest_unfinished(database: MariaDBDatabase) -> list[int]:
    found = database.query(
        "SELECT id FROM probe_outbox_messages WHERE status IN ('pending', 'published') ORDER BY id DESC LIMIT 40"
    )
    return [row[0] for row in found]


def _deadlocks(database: MariaDBDatabase) -> int:
    return int(database.value("SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'"))


@injects("lost-records")
def _lose_records(cluster: Cluster, fault: TimedFault) -> str:
    with cluster.database() as database:
        found = [
            row[0]
            for row in database.query(
                "SELECT id FROM probe_outbox_messages WHERE status = 'pending' AND retry_count = 0"
                " AND message_key NOT LIKE 'oversize%' ORDER BY id DESC LIMIT 5"
            )
        ]
        for row_id in found:
            database.execute(
                "UPDATE probe_outbox_messages SET status = 'published', published_at = UTC_TIMESTAMP(6),"
                f" next_retry_at = UTC_TIMESTAMP(6) WHERE id = {row_id} AND status = 'pending'"
            )
            cluster.ledger.lost_records.add(row_id)
    if not found:
        raise MissedError("no row was pending")
    return f"rows {found}"


# --- records and rows that nobody published ----------------------------------------------------------------------


def _sample(cluster: Cluster, dice: random.Random, count: int, *, among: str = "TRUE") -> list[Any]:
    """Return (id, event type, key) of some of the newest rows; ``among`` is a condition in SQL."""
    with cluster.database() as database:
        found = database.query(
            "SELECT id, event_type, message_key FROM probe_outbox_messages"
            f" WHERE message_key NOT LIKE 'oversize%' AND {among} ORDER BY id DESC LIMIT 200"
        )
    if len(found) < count:
        raise MissedError("there are no rows yet")
    return dice.sample(found, count)


@injects("garbage")
def _send_garbage(cluster: Cluster, fault: TimedFault) -> str:
    dice = random.Random(fault.dice)
    (row,) = _sample(cluster, dice, 1)
    foreign = {"outbox_id": row[0], "event_type": row[1], "event_id": "foreign", "payload": {}}
    forms: list[tuple[bytes | None, str]] = [
        (f"garbage {fault.dice}".encode(), NO_MESSAGE),
        (b"\x00\xff\xfe" * 10, NO_MESSAGE),
        (None, "the record has no value"),
        (msgspec.json.encode({**foreign, "service_name": "somebody-else"}), "it belongs to service 'somebody-else'"),
        (msgspec.json.encode({**foreign, "outbox_id": 10**12}), f"no row {10**12} in"),
        (msgspec.json.encode({**foreign, "event_type": "probe.nonsense"}), f"row {row[0]} of"),
    ]
    records = [
        ForeignRecord(f"garbage-{fault.at_s}-{number}".encode(), value, reason)
        for number, (value, reason) in enumerate(forms)
    ]
    return put(cluster, records, dice=dice)


@injects("other-installation")
def _send_of_other_installation(cluster: Cluster, fault: TimedFault) -> str:
    """Put records that another installation of this software made, of its own rows with the ids of some of ours.

    Ids that ours have not, that ours have for another event type, and ids and types of ours: by its header each is
    rejected. Each names an installation of its own, as all records of one installation are one rejected record.
    """
    dice = random.Random(fault.dice)
    records = []
    for number, (row_id, event_type, _) in enumerate(_sample(cluster, dice, 4)):
        name = f"other-{fault.at_s}-{number}"
        another_type = "probe.bulk" if event_type != "probe.bulk" else "probe.step"
        records += [
            _of_other_installation(f"{name}-absent", 10**9 + row_id, event_type),
            _of_other_installation(f"{name}-type", row_id, another_type),
            _of_other_installation(f"{name}-same", row_id, event_type),
        ]
    return put(cluster, records, dice=dice)


def _of_other_installation(key: str, row_id: int, event_type: str) -> ForeignRecord:
    """Return a record as the relay of an installation of its own makes them."""
    event_id = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
    envelope = Envelope(
        event_id=event_id,
        event_type=event_type,
        event_version="v1",
        aggregate_id="",
        payload=msgspec.Raw(b'{"key": "of another installation", "n": -1}'),
    )
    return ForeignRecord(
        key.encode(),
        encode_message(envelope, outbox_id=row_id, service="probe"),
        f"it is of installation {event_id}",
        headers=headers_of(envelope, service="probe", installation=event_id),
    )


@injects("earlier-rows")
def _send_of_earlier_rows(cluster: Cluster, fault: TimedFault) -> str:
    """Put records with ids and types of our rows that state other event ids: a restored database gives ids again."""
    dice = random.Random(fault.dice)
    records = []
    for number, (row_id, event_type, _) in enumerate(_sample(cluster, dice, 4, among="event_id <> ''")):
        envelope = Envelope(
            event_id=f"earlier-{fault.at_s}-{number}",
            event_type=event_type,
            event_version="v1",
            aggregate_id="",
            payload=msgspec.Raw(b'{"key": "of an earlier row", "n": -1}'),
        )
        value = encode_message(envelope, outbox_id=row_id, service="probe")
        records.append(ForeignRecord(envelope.event_id.encode(), value, f"event_id of row {row_id} of"))
    return put(cluster, records, dice=dice)


@injects("echo")
def _echo(cluster: Cluster, fault: TimedFault) -> str:
    """A record only says which row to look at: it may come early, late, twice, and where it does not belong."""
    dice = random.Random(fault.dice)
    rows = _sample(cluster, dice, 12)
    records = [
        ForeignRecord(
            key.encode(), msgspec.json.encode({"outbox_id": row_id, "event_type": event_type, "service_name": "probe"})
        )
        for row_id, event_type, key in rows
    ]
    with producing(cluster) as producer:
        cluster.ledger.echoes += sum(answers_of(producer, cluster.installation.topic(), records, dice=dice))
    return f"rows {sorted(row[0] for row in rows)}"


@injects("sql-rows")
def _insert_rows(cluster: Cluster, fault: TimedFault) -> str:
    forms = {
        "sound": ("probe.step", '{{"payload": {{"key": "{key}", "n": 1}}}}', "consumed", ""),
        "type": ("probe.unknown", '{{"payload": {{"key": "{key}"}}}}', "dead", "UnreadableError"),
        "version": ("probe.bulk", '{{"event_version": "v9", "payload": {{"key": "{key}"}}}}', "dead", "UnknownVersion"),
        "payload": ("probe.step", '{{"payload": {{"key": 7}}}}', "dead", "PayloadError"),
        "json": ("probe.step", "no JSON", "dead", "EnvelopeError"),
        "array": ("probe.bulk", "[1, 2]", "dead", "EnvelopeError"),
    }
    with cluster.database() as database:
        for name, (event_type, payload, status, reason) in forms.items():
            key = f"sql-{name}-{fault.at_s}"
            cluster.ledger.sql_rows[key] = SqlRow(key, status, reason, is_certain=False)
            database.execute(
                "INSERT INTO probe_outbox_messages (event_type, message_key, payload) VALUES (%s, %s, %s)",
                [event_type, key, payload.format(key=key)],
            )
            cluster.ledger.sql_rows[key] = SqlRow(key, status, reason, is_certain=True)
    return f"{len(forms)} rows"
