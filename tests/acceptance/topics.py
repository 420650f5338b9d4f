"""Topics and groups on a real Kafka, looked at and changed past the project."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def kafka_admin(servers: str) -> Any:
    """Return an admin client; close it."""
    from kafka import KafkaAdminClient

    return KafkaAdminClient(bootstrap_servers=servers.split(","))


def create_topic(servers: str, topic: str, **configs: str) -> None:
    """Create a topic as the tests' workers would, with ``configs`` of its own."""
    admin = kafka_admin(servers)
    try:
        options = {"num_partitions": 3, "replication_factor": 1, "configs": configs}
        admin.create_topics({topic: options}, wait_for_metadata=True)
    finally:
        admin.close()


def topic_length(servers: str, topic: str) -> int:
    """Return how many records were ever written to a topic."""
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    admin = kafka_admin(servers)
    try:
        partitions = [TopicPartition(topic, number) for number in range(3)]
        found = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    finally:
        admin.close()
    return sum(entry.offset for entry in found.values())


def remove_topics(servers: str, *, topics: Sequence[str], groups: Sequence[str] = ()) -> None:
    """Delete topics and groups, as far as they are there and nobody uses them."""
    from kafka.errors import KafkaError

    admin = kafka_admin(servers)
    try:
        admin.delete_topics(list(topics), raise_errors=False)
        with suppress(KafkaError):
            admin.delete_groups(list(groups))
    finally:
        admin.close()


def group_members(servers: str, group: str) -> dict[str, Any]:
    """Return the state of a consumer group and its member ids."""
    admin = kafka_admin(servers)
    try:
        found: dict[str, Any] = admin.describe_groups([group])[group]
    finally:
        admin.close()
    return found
