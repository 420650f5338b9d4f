"""Consumer groups, as the brokers see them."""

from __future__ import annotations

from typing import Any

from benchmarks.database import kafka_servers


class Group:
    """One consumer group."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._admin: Any = None

    def __enter__(self) -> Group:
        from kafka import KafkaAdminClient  # noqa: PLC0415 - a small harness: see processes.Ended

        self._admin = KafkaAdminClient(bootstrap_servers=kafka_servers().split(","))
        return self

    def __exit__(self, *_: object) -> None:
        self._admin.close()

    def is_settled(self, members: int) -> bool:
        """Say whether so many members are in it and each has partitions."""
        group = self._admin.describe_groups([self._name])[self._name]
        having = [member for member in group["members"] if _partitions(member)]
        return group["group_state"] == "Stable" and len(having) == len(group["members"]) == members


def _partitions(member: Any) -> int:
    assigned = (member["member_assignment"] or {}).get("assigned_partitions") or []
    return sum(len(topic["partitions"]) for topic in assigned)
