"""Every event type on MariaDB, MySQL and Kafka: valid, invalid, repeated, and delivered out of order.

Rows and records are written as other software writes them, by SQL and by ``kcat``; a relay and five consumers of ours
are at work meanwhile. Each test has a user and a conversation of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.acceptance.conftest import show_when_failed
from tests.acceptance.databases import Server
from tests.acceptance.harness import Installation
from tests.acceptance.kcat import Kcat
from tests.acceptance.services_harness import SMALL_BATCHES, ServicesInstallation
from tests.conftest import SERVICES
from tests.services import require

AT = "2026-05-01T09:30:00+08:00"

JSON = dict[str, Any]

_users = itertools.count(5_000)
_event_ids = itertools.count(1)


@dataclass(frozen=True)
class Kind:
    """One event type."""

    event_type: str
    service: str
    version: str
    payload: Callable[[int, str, int], JSON]
    """(user, conversation, n) -> the payload of the user's n-th event."""
    effects: str
    """The query for all effects of a user, in the order in which they were made."""
    expected: Callable[[int], list[Any]]
    """What the query gives after n events."""
    wrong: JSON
    """The field that makes a payload invalid."""


KINDS = [
    Kind(
        "agent.state.snapshot.persist",
        "agent",
        "v1",
        lambda user, conversation, n: {
            "conversation_id": conversation,
            "user_id": user,
            "phase": f"phase {n}",
            "snapshot_json": json.dumps({"n": n}),
        },
        "SELECT phase, snapshot_json FROM agent_state_snapshot_records WHERE user_id = %s",
        lambda n: [(f"phase {n}", json.dumps({"n": n}))],
        wrong={"phase": "x" * 33},
    ),
    Kind(
        "chat.history.persist.requested",
        "agent",
        "v1",
        lambda user, conversation, n: {
            "user_id": user,
            "conversation_id": conversation,
            "role": "assistant",
            "message": f"message {n}",
            "tokens_consumed": 10,
        },
        "SELECT message, message_count, tokens_total FROM chat_histories JOIN agent_chats USING (user_id)"
        " WHERE user_id = %s ORDER BY chat_histories.id",
        lambda n: [(f"message {each}", n, 10 * n) for each in range(1, n + 1)],
        wrong={"tokens_consumed": -1},
    ),
    Kind(
        "chat.token.usage.adjust.requested",
        "agent",
        "v1",
        lambda user, conversation, n: {
            "user_id": user,
            "conversation_id": conversation,
            "tokens_delta": n,
            "reason": "title_generation",
            "triggered_at": AT,
        },
        "SELECT tokens_delta, tokens_total FROM agent_token_ledger JOIN agent_chats USING (user_id)"
        " WHERE user_id = %s ORDER BY agent_token_ledger.id",
        lambda n: [(each, n * (n + 1) // 2) for each in range(1, n + 1)],
        wrong={"tokens_delta": 0},
    ),
    Kind(
        "agent.timeline.persist.requested",
        "agent",
        "v1",
        lambda user, conversation, n: {
            "user_id": user,
            "conversation_id": conversation,
            "seq": n,
            "kind": "tool_call",
            "content": f"step {n}",
            "tokens_consumed": 0,
        },
        "SELECT seq, content FROM agent_timeline_events WHERE user_id = %s ORDER BY id",
        lambda n: [(each, f"step {each}") for each in range(1, n + 1)],
        wrong={"seq": 0},
    ),
    Kind(
        "memory.extract.requested",
        "memory",
        "v1",
        lambda user, conversation, n: {
            "user_id": user,
            "conversation_id": conversation,
            "source_role": "user",
            "source_text": f"text {n}",
            "occurred_at": AT,
            "idempotency_key": f"memory_extract_{user}_{n:016x}",
        },
        "SELECT source_text, job_type, status, max_retry FROM memory_jobs WHERE user_id = %s ORDER BY id",
        lambda n: [(f"text {each}", "extract", "pending", 6) for each in range(1, n + 1)],
        wrong={"source_text": ""},
    ),
    Kind(
        "task.urgency.promote.requested",
        "task",
        "v1",
        lambda user, _conversation, n: {"user_id": user, "task_ids": [user * 10 + n], "triggered_at": AT},
        "SELECT id - user_id * 10 FROM tasks WHERE user_id = %s AND priority = 1 ORDER BY updated_at",
        lambda n: [(each,) for each in range(1, n + 1)],
        wrong={"task_ids": [7, 7]},
    ),
    Kind(
        "active_schedule.triggered",
        "active-scheduler",
        "1",
        lambda user, _conversation, n: {
            "trigger_id": f"trigger-{user}-{n}",
            "user_id": user,
            "trigger_type": "important_urgent_task",
            "source": "worker_due_job",
            "target_type": "task_pool",
            "target_id": user * 10 + n,
            "is_mock_time": False,
            "requested_at": AT,
        },
        "SELECT p.target_id - p.user_id * 10, t.status FROM active_schedule_previews p"
        " JOIN active_schedule_triggers t USING (trigger_id) WHERE p.user_id = %s ORDER BY p.id",
        lambda n: [(each, "preview_generated") for each in range(1, n + 1)],
        wrong={"source": "api_dry_run"},
    ),
    Kind(
        "notification.feishu.requested",
        "notification",
        "1",
        lambda user, _conversation, n: {
            "user_id": user,
            "trigger_id": f"trigger-{user}",
            "preview_id": f"preview-{n}",
            "trigger_type": "important_urgent_task",
            "target_type": "task_pool",
            "target_id": 7,
            "dedupe_key": f"{user}:important_urgent_task:2026-05-01T0{n}:30:00Z",
            "target_url": "/assistant/conversation",
            "requested_at": AT,
        },
        "SELECT preview_id, channel, status FROM notification_records WHERE user_id = %s ORDER BY id",
        lambda n: [(f"preview-{each}", "feishu", "pending") for each in range(1, n + 1)],
        wrong={"target_url": "https://elsewhere.example/assistant/"},
    ),
]


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def installation(
    request: pytest.FixtureRequest,
    database_servers: Callable[[str], Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServicesInstallation]:
    """Give the five services at work: one process that relays for all, and a consumer each."""
    base = Installation(
        database=database_servers(request.param).create(),
        kafka=require("kafka"),
        folder=tmp_path_factory.mktemp("events"),
    )
    made = ServicesInstallation(base, options=SMALL_BATCHES)
    try:
        made.wait_until_at_work(
            made.manage("relay", "run_relay", "--create-topics"), *(made.consumer(service) for service in SERVICES)
        )
        yield made
    finally:
        made.dispose()
        base.dispose()


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest, installation: ServicesInstallation) -> Iterator[None]:
    yield
    show_when_failed(request, [installation])


class Subject:
    """One user's events of one type."""

    def __init__(self, installation: ServicesInstallation, kind: Kind) -> None:
        self.kind, self._installation = kind, installation
        self._query, self._execute = installation.database.query, installation.database.execute
        assert installation.kafka is not None
        self._topic = Kcat(installation.kafka, installation.topic(kind.service), installation.folder)
        self._table = f"{kind.service.replace('-', '_')}_outbox_messages"
        self.user = next(_users)
        for n in range(4):
            self._execute(
                "INSERT INTO tasks (id, user_id, title, urgency_threshold_at)"
                " VALUES (%s, %s, 'task', UTC_TIMESTAMP(6) - INTERVAL 1 HOUR)",
                [self.user * 10 + n, self.user],
            )

    @property
    def key(self) -> str:
        by_user = {"task", "active-scheduler", "notification"}
        return str(self.user) if self.kind.service in by_user else f"conversation-{self.user}"

    def envelope(self, n: int, *, version: str = "", **changes: Any) -> JSON:
        """Return the payload column for the user's n-th event."""
        payload = self.kind.payload(self.user, f"conversation-{self.user}", n) | changes
        return {
            "event_id": f"event-{next(_event_ids)}",
            "event_type": self.kind.event_type,
            "event_version": version or self.kind.version,
            "aggregate_id": self.key,
            "payload": payload,
        }

    def insert(self, envelope: JSON, *, sent: bool = False) -> int:
        """Write a row as another program does; ``sent`` says that a relay has sent its record already."""
        row = [self.kind.event_type, self.kind.service, "", self.key, json.dumps(envelope)]
        self._execute(
            f"INSERT INTO {self._table} (event_type, service_name, topic, message_key, payload, status, published_at,"
            " next_retry_at) VALUES (%s, %s, %s, %s, %s, "
            + (
                "'published', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL 1 HOUR)"
                if sent
                else "'pending', NULL, NULL)"
            ),
            row,
        )
        [(row_id,)] = self._query(f"SELECT MAX(id) FROM {self._table} WHERE message_key = %s", [self.key])
        return int(row_id)

    def deliver(self, row_id: int, envelope: JSON) -> None:
        """Write the record of a row to the topic, as another relay does."""
        value = {"outbox_id": row_id, "service_name": self.kind.service, **envelope}
        self._topic.produce(json.dumps(value).encode(), key=self.key)

    def effects(self) -> list[Any]:
        return self._query(self.kind.effects, [self.user])

    def row(self, row_id: int, columns: str = "status, retry_count") -> Any:
        [found] = self._query(f"SELECT {columns} FROM {self._table} WHERE id = %s", [row_id])
        return found

    def wait_until(self, condition: Callable[[], bool], message: str) -> None:
        self._installation.wait(condition, f"{self.kind.event_type}: {message}", alive=self._installation.workers)

    def wait_for(self, row_id: int, status: str) -> None:
        self.wait_until(lambda: self.row(row_id)[0] == status, f"row {row_id} became {status}")

    def wait_until_all_is_read(self) -> None:
        """Wait until the consumer has come past everything that was delivered, by a record that no row belongs to."""
        last = f"the last of {self.user}".encode()
        self._topic.produce(last, key=self.key)
        self.wait_until(
            lambda: last in [value for value, _ in self._installation.rejected()], "everything delivered was read"
        )


@pytest.fixture(params=KINDS, ids=lambda kind: kind.event_type)
def subject(request: pytest.FixtureRequest, installation: ServicesInstallation) -> Subject:
    return Subject(installation, request.param)


def test_valid_event_has_its_effect(subject: Subject) -> None:
    row_id = subject.insert(subject.envelope(1))

    subject.wait_for(row_id, "consumed")
    assert subject.row(row_id) == ("consumed", 0)
    assert subject.effects() == subject.kind.expected(1)


def test_invalid_event_dies_with_its_reason_and_its_key_goes_on(subject: Subject) -> None:
    [(field, value)] = subject.kind.wrong.items()
    invalid = subject.insert(subject.envelope(2, **{field: value}))
    unknown = subject.insert(subject.envelope(3, version="v99"))
    valid = subject.insert(subject.envelope(1))

    subject.wait_for(valid, "consumed")
    for row_id, reason in ((invalid, field), (unknown, "v99")):
        status, attempts, last_error = subject.row(row_id, "status, retry_count, last_error")
        assert (status, attempts) == ("dead", 0), "it would fail for ever, so it is not tried again"
        assert reason in last_error
    assert subject.effects() == subject.kind.expected(1)


def test_repeated_event_has_one_effect(subject: Subject) -> None:
    """Its record comes again while its row waits and when it is done; then its publisher repeats the row."""
    envelope = subject.envelope(1)
    row_id = subject.insert(envelope)
    subject.deliver(row_id, envelope)
    subject.wait_for(row_id, "consumed")
    subject.deliver(row_id, envelope)
    again = subject.insert(envelope)
    subject.wait_for(again, "consumed")
    subject.wait_until_all_is_read()

    assert subject.effects() == subject.kind.expected(1)
    assert subject.row(row_id) == ("consumed", 0)


def test_event_that_overtakes_its_predecessor_waits_for_it(subject: Subject) -> None:
    first, second = subject.envelope(1), subject.envelope(2)
    first_id, second_id = subject.insert(first, sent=True), subject.insert(second, sent=True)
    [promised] = subject.row(second_id, "next_retry_at")

    subject.deliver(second_id, second)
    subject.wait_until(lambda: subject.row(second_id, "next_retry_at") != (promised,), "the second was put back")
    assert subject.effects() == []
    subject.deliver(first_id, first)

    subject.wait_for(second_id, "consumed")
    assert [subject.row(each) for each in (first_id, second_id)] == [("consumed", 0)] * 2, "waiting costs no attempt"
    assert subject.row(first_id, "consumed_at") <= subject.row(second_id, "consumed_at")
    assert subject.effects() == subject.kind.expected(2)
