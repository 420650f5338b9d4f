"""Every kind of fault there is."""

from __future__ import annotations

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


STANDING: Final = "standing"
"""The lane of faults that begin with the run and last until its end."""

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
    "kafka-watched": Kind("kafka", 4, 10, "Kafka is unavailable while an operator looks at pages and outbox_status"),
    "database-stop": Kind("database", 1, 8, "the database is stopped and started again"),
    "database-kill": Kind("database", 1, 8, "kill -9 of the database; it is started again"),
    "database-freeze": Kind("database", 3, 12, "SIGSTOP of the database"),
    "database-full": Kind("database", 4, 12, "the disk of the database is full"),
    "kafka-latency": Kind("kafka-net", 3, 10, "every packet to and from Kafka is late"),
    "kafka-cut": Kind("kafka-net", 0.5, 4, "connections to Kafka are reset, again and again"),
    "kafka-half-open": Kind("kafka-net", 3, 12, "connections to Kafka are accepted and carry nothing"),
    "kafka-deaf": Kind("kafka-net", 1, 5, "requests reach Kafka, the answers are lost"),
    "database-latency": Kind("database-net", 3, 10, "every packet to and from the database is late"),
    "database-cut": Kind("database-net", 0.5, 4, "connections to the database are reset, again and again"),
    "database-half-open": Kind("database-net", 3, 12, "connections to the database are accepted and carry nothing"),
    "database-deaf": Kind("database-net", 1, 5, "statements reach the database, COMMIT too, the answers are lost"),
    "kill-connections": Kind("sql", 0, 0, "KILL of every database connection"),
    "kill-queries": Kind("sql", 1, 4, "KILL QUERY of whatever runs, again and again"),
    "stranger-locks": Kind("sql", 2, 9, "a transaction of a stranger holds locks on unfinished rows"),
    "deadlocks": Kind("sql", 2, 6, "a transaction of a stranger locks rows in the other order, again and again"),
    "kill-one": Kind("sql", 2, 6, "KILL of one database connection after the other"),
    "dba-killer": Kind("sql", 3, 6, "a DBA's script kills every transaction older than a second"),
    "statement-limit": Kind("sql", 3, 7, "the server's limit of a statement's time is set very low"),
    "table-missing": Kind("tables", 3, 8, "the outbox table of the agent service is renamed away, and back"),
    "lost-records": Kind("sql", 0, 0, "rows say `published` and no record is on the topic"),
    "garbage": Kind("topic", 0, 0, "garbage and foreign records on the topic"),
    "echo": Kind("topic", 0, 0, "records of known rows again, on any partition"),
    "odd-bytes": Kind(
        "topic", 0, 0, "foreign records with key, headers or value that are no UTF-8, or with many headers"
    ),
    "unreadable-batch": Kind("topic", 0, 0, "a batch of foreign records that the broker takes and Python cannot read"),
    "transactions": Kind("topic", 0, 0, "foreign transactions, committed and aborted: markers on the topics"),
    "other-installation": Kind("topic", 0, 0, "records of a second installation, made as ours, on our topic"),
    "earlier-rows": Kind("topic", 0, 0, "records of rows that had the ids of ours before a backup was restored"),
    "flood-small": Kind("floods", 0, 0, "hundreds of small foreign records at once"),
    "flood-large": Kind("floods", 0, 0, "foreign records as large as each topic takes, compressed ones far larger"),
    "row-holder": Kind("row-holders", 60, 110, "a stranger locks a business row for minutes; handlers want it"),
    "outbox-holder": Kind("outbox-holders", 60, 110, "a stranger locks an unfinished outbox row for minutes"),
    "host-freeze": Kind(
        "hosts", 8, 14, "SIGSTOP of a consumer in the middle of a handler, beyond its session's bounds"
    ),
    "sql-rows": Kind("rows", 0, 0, "rows by plain SQL: sound, unknown type or version, undecodable"),
    "replay": Kind("people", 0, 0, "a person replays dead events"),
    "mend": Kind("people", 0, 0, "a person mends an event that parks its key, and replays it"),
    "give-up": Kind("people", 0, 0, "a person gives up an event that parks its key"),
    "pause-relay": Kind("people", 2, 8, "a person pauses the relays and resumes them"),
    "pause-consumer": Kind("people", 2, 8, "a person pauses the consumers and resumes them"),
    "writer-kill": Kind("writers", 0, 0, "kill -9 of a process that publishes; a new one is started"),
    "swallow-error": Kind("handlers", 0, 0, "a handler that swallows an IntegrityError of save()"),
    "swallow-rollback": Kind("handlers", 0, 0, "a handler that calls set_rollback(True) and returns"),
    "raw-rollback": Kind("handlers", 0, 0, "a handler that executes ROLLBACK and returns"),
    "raw-commit": Kind("handlers", 0, 0, "a handler that executes COMMIT"),
    "coroutine": Kind("handlers", 0, 0, "a handler that returns a coroutine"),
    "elsewhere": Kind("handlers", 0, 0, "a handler that uses another database, which is away"),
    "large-statement": Kind("handlers", 0, 0, "a handler with a statement above max_allowed_packet"),
    "hook": Kind("handlers", 0, 0, "a handler with an on_commit hook that raises, and one behind it"),
    "idle": Kind("handlers", 0, 0, "a handler that sleeps with an open transaction, within its time limit"),
    "row-lock": Kind("handlers", 3, 6, "a handler that runs into a row lock of seconds"),
    "hang-loop": Kind("killers", 0, 0, "a handler that never returns: a loop in Python"),
    "hang-sleeps": Kind("killers", 0, 0, "a handler that never returns: it sleeps again and again"),
    "hang-swallow": Kind("killers", 0, 0, "a handler that never returns, and swallows every exception"),
    "hang-database": Kind("killers", 0, 0, "a handler that never returns: it waits in the database"),
    "hang-socket": Kind("killers", 0, 0, "a handler that never returns: it waits at a socket"),
    "kill-exit": Kind("killers", 0, 0, "a handler that calls os._exit"),
    "kill-signal": Kind("killers", 0, 0, "a handler that SIGKILLs its process, as an OOM killer does"),
    "kill-crash": Kind("killers", 0, 0, "a handler that ends its process with a segmentation fault"),
    "kill-match": Kind(
        "killers", 0, 0, "a handler that keeps the interpreter's lock: a regular expression without end"
    ),
    "flaky": Kind(STANDING, 0, 0, "handlers that raise a few times and then succeed"),
    "poison": Kind(STANDING, 0, 0, "handlers that never succeed"),
    "discard": Kind(STANDING, 0, 0, "handlers that discard"),
    "asks-again": Kind(STANDING, 0, 0, "handlers that ask for a retry"),
    "slow": Kind(STANDING, 0, 0, "handlers that take their time"),
    "parking": Kind(STANDING, 0, 0, "events whose death holds back their key"),
    "oversize": Kind(STANDING, 0, 0, "events too large for the topic"),
}
"""Every fault there is, by name."""
