"""Which fault begins when, made up front from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what it takes hold of, and for how long."""

    lane: str
    """Faults of one lane come one after the other; lanes do not wait for each other."""
    shortest_s: float
    longest_s: float
    summary: str


@dataclass(frozen=True, slots=True)
class TimedFault:
    """One fault of a run."""

    at_s: float
    name: str
    lane: str
    length_s: float
    dice: float
    """From [0, 1): decides what is left open, such as which worker is hit."""


STANDING: Final = "standing"
"""The lane of faults that begin with the run and last until its end."""

_GAPS_S: Final = {
    "relays": (3.0, 9.0),
    "consumers": (3.0, 9.0),
    "kafka": (12.0, 25.0),
    "mariadb": (12.0, 25.0),
    "kafka-net": (6.0, 15.0),
    "mariadb-net": (6.0, 15.0),
    "sql": (3.0, 9.0),
    "topic": (3.0, 8.0),
    "rows": (5.0, 12.0),
    "people": (3.0, 8.0),
    "writers": (15.0, 30.0),
}
"""How long a lane rests between two faults: work has to go on in between, or nothing is shown."""

_CALM_S: Final = 3.0
"""Nothing happens at the very beginning and nothing new at the end."""

KINDS: Final = {
    "relay-kill": Kind("relays", 0, 0, "kill -9 of a relay; a new one is started"),
    "relay-freeze": Kind("relays", 4, 10, "SIGSTOP of a relay for longer than its lease"),
    "relay-term": Kind("relays", 0, 0, "SIGTERM of a relay; a new one is started"),
    "relay-more": Kind("relays", 5, 15, "one more relay for a while"),
    "relay-fewer": Kind("relays", 3, 8, "one relay less for a while"),
    "relay-clock": Kind("relays", 4, 12, "the wall clock of a relay jumps by seconds to hours, and back"),
    "consumer-kill": Kind("consumers", 0, 0, "kill -9 of a consumer; a new one is started"),
    "consumer-freeze": Kind("consumers", 4, 14, "SIGSTOP of a consumer, often for longer than its session"),
    "consumer-term": Kind("consumers", 0, 0, "SIGTERM of a consumer; a new one is started"),
    "consumer-more": Kind("consumers", 5, 15, "one more consumer for a while: two rebalances"),
    "consumer-fewer": Kind("consumers", 3, 8, "one consumer less for a while"),
    "consumer-clock": Kind("consumers", 4, 12, "the wall clock of a consumer jumps by seconds to hours, and back"),
    "kafka-stop": Kind("kafka", 1, 8, "Kafka is stopped and started again"),
    "kafka-kill": Kind("kafka", 1, 8, "kill -9 of Kafka; it is started again"),
    "kafka-freeze": Kind("kafka", 3, 14, "SIGSTOP of Kafka: connections stay open, nothing answers"),
    "mariadb-stop": Kind("mariadb", 1, 8, "MariaDB is stopped and started again"),
    "mariadb-kill": Kind("mariadb", 1, 8, "kill -9 of MariaDB; it is started again"),
    "mariadb-freeze": Kind("mariadb", 3, 12, "SIGSTOP of MariaDB"),
    "kafka-latency": Kind("kafka-net", 3, 10, "every packet to and from Kafka is late"),
    "kafka-cut": Kind("kafka-net", 0.5, 4, "connections to Kafka are reset, again and again"),
    "kafka-half-open": Kind("kafka-net", 3, 12, "connections to Kafka are accepted and carry nothing"),
    "kafka-deaf": Kind("kafka-net", 1, 5, "requests reach Kafka, the answers are lost"),
    "mariadb-latency": Kind("mariadb-net", 3, 10, "every packet to and from MariaDB is late"),
    "mariadb-cut": Kind("mariadb-net", 0.5, 4, "connections to MariaDB are reset, again and again"),
    "mariadb-half-open": Kind("mariadb-net", 3, 12, "connections to MariaDB are accepted and carry nothing"),
    "mariadb-deaf": Kind("mariadb-net", 1, 5, "statements reach MariaDB, COMMIT too, the answers are lost"),
    "kill-connections": Kind("sql", 0, 0, "KILL of every database connection"),
    "kill-queries": Kind("sql", 1, 4, "KILL QUERY of whatever runs, again and again"),
    "stranger-locks": Kind("sql", 2, 9, "a transaction of a stranger holds locks on unfinished rows"),
    "deadlocks": Kind("sql", 2, 6, "a transaction of a stranger locks rows in the other order, again and again"),
    "lost-records": Kind("sql", 0, 0, "rows say `published` and no record is on the topic"),
    "garbage": Kind("topic", 0, 0, "garbage and foreign records on the topic"),
    "echo": Kind("topic", 0, 0, "records of known rows again, on any partition"),
    "sql-rows": Kind("rows", 0, 0, "rows by plain SQL: sound, unknown type or version, undecodable"),
    "replay": Kind("people", 0, 0, "a person replays dead events"),
    "mend": Kind("people", 0, 0, "a person mends an event that parks its key, and replays it"),
    "give-up": Kind("people", 0, 0, "a person gives up an event that parks its key"),
    "pause-relay": Kind("people", 2, 8, "a person pauses the relays and resumes them"),
    "pause-consumer": Kind("people", 2, 8, "a person pauses the consumers and resumes them"),
    "writer-kill": Kind("writers", 0, 0, "kill -9 of a process that publishes; a new one is started"),
    "flaky": Kind(STANDING, 0, 0, "handlers that raise a few times and then succeed"),
    "poison": Kind(STANDING, 0, 0, "handlers that never succeed"),
    "discard": Kind(STANDING, 0, 0, "handlers that discard"),
    "asks-again": Kind(STANDING, 0, 0, "handlers that ask for a retry"),
    "slow": Kind(STANDING, 0, 0, "handlers that take their time"),
    "hang": Kind(STANDING, 0, 0, "handlers that hang for longer than a lease and a session"),
    "parking": Kind(STANDING, 0, 0, "events whose death holds back their key"),
    "oversize": Kind(STANDING, 0, 0, "events too large for the topic"),
}
"""Every fault there is, by name."""


def plan(seed: int, minutes: float, faults: Collection[str] = tuple(KINDS)) -> list[TimedFault]:
    """Return the faults of a run in the order of their beginnings.

    The same arguments give the same list. Each kind of a lane comes once before one comes again, and leaving out the
    faults of one lane changes nothing in the others.

    :raises ValueError: names the faults that do not exist.
    """
    if unknown := sorted(set(faults) - KINDS.keys()):
        raise ValueError(f"there is no fault {', '.join(unknown)}")
    chosen = [name for name in KINDS if name in faults]
    found = [
        TimedFault(0.0, name, STANDING, minutes * 60, random.Random(f"{seed}/{name}").random())
        for name in chosen
        if KINDS[name].lane == STANDING
    ]
    for lane, gap_s in _GAPS_S.items():
        names = [name for name in chosen if KINDS[name].lane == lane]
        if names:
            found += _lane(random.Random(f"{seed}/{lane}"), names, gap_s, end_s=minutes * 60 - _CALM_S)
    return sorted(found, key=lambda fault: (fault.at_s, fault.name))


def _lane(dice: random.Random, names: list[str], gap_s: tuple[float, float], *, end_s: float) -> list[TimedFault]:
    """Return the faults of one lane: none overlaps another, none lasts beyond ``end_s``."""
    found: list[TimedFault] = []
    bag: list[str] = []
    at_s = _CALM_S + dice.uniform(0, gap_s[1])
    while True:
        if not bag:
            bag = dice.sample(names, len(names))
        name = bag.pop()
        kind = KINDS[name]
        length_s = dice.uniform(kind.shortest_s, kind.longest_s)
        if at_s + length_s > end_s:
            return found
        found.append(TimedFault(round(at_s, 2), name, kind.lane, round(length_s, 2), dice.random()))
        at_s += length_s + dice.uniform(*gap_s)
