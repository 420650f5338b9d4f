"""Five services, each with a relay and a consumer of its own: none needs another one, and each keeps to itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
from django.apps import apps

from outbox.models import OutboxMessage
from tests.acceptance import services_checks as checks
from tests.acceptance.conftest import ON_EACH_MYSQL
from tests.acceptance.services_harness import ServicesInstallation, is_gone, wait_gone
from tests.acceptance.services_publisher import Load, Subject
from tests.acceptance.topics import group_members
from tests.acceptance.workers import Worker
from tests.conftest import SERVICES
from tests.waiting import wait_until

pytestmark = ON_EACH_MYSQL

pytest_plugins = ("tests.acceptance.services_fixtures",)

InstallServices = Callable[..., ServicesInstallation]

EIGHT: list[Subject] = list(get_args(Subject))
EVENT_TYPES_OF = {
    "agent": {
        "agent.state.snapshot.persist",
        "agent.timeline.persist.requested",
        "chat.history.persist.requested",
        "chat.token.usage.adjust.requested",
    },
    "task": {"task.urgency.promote.requested"},
    "memory": {"memory.extract.requested"},
    "active-scheduler": {"active_schedule.triggered"},
    "notification": {"notification.feishu.requested"},
}
HANDS_ON_TO = {"agent": "memory", "active-scheduler": "notification"}
"""Whose outbox table a service's handlers publish into."""


@pytest.fixture
def installation(install_services: InstallServices) -> ServicesInstallation:
    made = install_services()
    checks.insert_tasks(made)
    return made


def start_all(installation: ServicesInstallation) -> dict[str, Worker]:
    """Start ten processes; return them by role and service."""
    workers = [begin(service) for service in SERVICES for begin in (installation.relay, installation.consumer)]
    return {worker.name: worker for worker in workers}


def check_everything(installation: ServicesInstallation) -> None:
    """Check that nothing that was committed is lost, and that every effect is there once."""
    handed_on = [
        event_id
        for service, event_type in (("memory", checks.EXTRACT), ("notification", checks.NOTIFY))
        for _, event_id, _ in installation.payloads(service, event_type)
    ]
    checks.check_journal(installation, by_handlers=handed_on)
    checks.check_chats(installation)
    checks.check_memory_jobs(installation)
    checks.check_previews(installation)
    checks.check_notification_records(installation)
    checks.check_other_records(installation)


def test_ten_processes_do_the_work_of_five_services(installation: ServicesInstallation) -> None:
    workers = start_all(installation)
    installation.publish_services_load(Load(prefix="all", subjects=EIGHT, transactions=200, seed=51))
    installation.wait_until_all_done(alive=list(workers.values()))
    for service, event_types in EVENT_TYPES_OF.items():
        assert {row.event_type for row in installation.rows(service)} == event_types
    check_everything(installation)

    members = {service: members_of(installation, service) for service in SERVICES}
    assert [len(each) for each in members.values()] == [1] * 5, "a group has other members than its one consumer"
    client_ids = [member["client_id"] for each in members.values() for member in each]
    for service, client_id in zip(members, client_ids, strict=True):
        assert client_id.startswith(f"smartflow-{service}-consumer-"), client_id
    assert len(set(client_ids)) == 5
    # Producers form no group; a client id is made of the id under which a worker is known.
    known = installation.database.query("SELECT service, role, pid, worker_id FROM outbox_workers")
    assert {(service, role, pid) for service, role, pid, _ in known} == {
        (service, role, workers[f"{role}-{service}"].pid) for service in SERVICES for role in ("relay", "consumer")
    }
    assert {
        f"smartflow-{service}-{role}-{worker_id.replace(':', '-')}" for service, role, _, worker_id in known
    } >= set(client_ids)
    for worker in workers.values():
        worker.stop()


def test_services_go_on_without_each_other_and_keep_to_themselves(installation: ServicesInstallation) -> None:
    workers = start_all(installation)
    installation.publish_services_load(Load(prefix="before", subjects=EIGHT, transactions=60, seed=52))
    installation.wait_until_all_done(alive=list(workers.values()))

    ended = [workers.pop("consumer-memory"), workers.pop("consumer-notification")]
    ended[0].stop()
    ended[1].kill9()
    done = {service: installation.statuses(service)["consumed"] for service in SERVICES}
    installation.publish_services_load(Load(prefix="without", subjects=EIGHT, transactions=120, seed=53))
    alive = list(workers.values())
    installation.wait_until_all_done("agent", "task", "active-scheduler", alive=alive)
    for service in ("memory", "notification"):
        installation.wait(
            lambda service=service: not installation.statuses(service)["pending"],
            f"the relay of {service} went on",
            alive=alive,
        )
        statuses = installation.statuses(service)
        assert statuses["consumed"] == done[service], f"{service} has no consumer"
        assert statuses["published"], f"nothing waits for the consumer of {service}"
    for service in ("agent", "task", "active-scheduler"):
        assert installation.statuses(service)["consumed"] > done[service]

    for consumer in (installation.consumer("memory"), installation.consumer("notification")):
        workers[consumer.name] = consumer
    installation.wait_until_all_done(alive=list(workers.values()))
    check_everything(installation)
    for worker in workers.values():
        worker.stop()
    for worker in (*ended, *workers.values()):
        role, _, service = worker.name.partition("-")
        check_that_it_keeps_to_itself(installation, worker, role, service)


def test_everything_runs_under_one_supervisor(installation: ServicesInstallation) -> None:
    supervisor = installation.supervisor()
    names = {f"{service} {role}" for service in SERVICES for role in ("relay", "consumer")}
    installation.wait(lambda: supervisor.children().keys() == names, "ten processes started", alive=[supervisor])
    first = supervisor.children()
    installation.publish_services_load(Load(prefix="first", subjects=EIGHT, transactions=40, seed=54))
    installation.wait_until_all_done(alive=[supervisor])

    victims = {name: first[name] for name in ("agent relay", "task consumer")}
    for pid in victims.values():
        supervisor.kill_child(pid)
    installation.publish_services_load(Load(prefix="second", subjects=EIGHT, transactions=40, seed=55))
    installation.wait_until_all_done(alive=[supervisor])
    check_everything(installation)
    second = supervisor.children()
    assert {name for name in names if first[name] != second[name]} == victims.keys()
    for name in victims:
        assert re.search(rf"(?m)^{name} +\| ended with code -9; starts again in 1 s$", supervisor.text)
    assert not any(is_gone(pid) for pid in second.values())

    supervisor.stop(timeout_s=40)
    wait_gone([*first.values(), *second.values()])
    lines = supervisor.text.splitlines()
    width = max(map(len, names))
    strange = [line for line in lines if line[:width].strip() not in names or line[width : width + 3] != " | "]
    assert not strange, f"lines without a name in front: {strange[:5]}"
    # The last words of each are there too: nothing is cut off at the end.
    for service in SERVICES:
        assert re.search(rf"(?m)^{service} relay +\| {service}: published \d+, dead 0, redelivered 0$", supervisor.text)
        assert re.search(rf"(?m)^{service} consumer +\| {service}: consumed \d+, ", supervisor.text)


def members_of(installation: ServicesInstallation, service: str) -> list[dict[str, Any]]:
    """Return the members of a service's group as Kafka describes them, when it has settled."""
    assert installation.kafka is not None
    servers = installation.kafka

    def settled() -> list[dict[str, Any]]:
        found = group_members(servers, installation.group(service))
        return list(found["members"]) if found["group_state"] == "Stable" else []

    return wait_until(settled, message=f"the group of {service} has settled")


# --- whose tables a worker touches -------------------------------------------------------------------------------


def tables_of(service: str) -> tuple[str, set[str]]:
    """Return the outbox table of a service and the tables of its records."""
    models = apps.get_app_config(service.replace("-", "_")).get_models()
    outbox = next(model for model in apps.get_models() if issubclass(model, OutboxMessage) and model.service == service)
    return outbox._meta.db_table, {model._meta.db_table for model in models if model is not outbox}


def check_that_it_keeps_to_itself(installation: ServicesInstallation, worker: Worker, role: str, service: str) -> None:
    """Check which tables the statements of a worker name."""
    outbox, records = tables_of(service)
    tables = [name for (name,) in installation.database.query("SHOW TABLES")]
    assert {outbox, *records} <= set(tables)
    named: set[tuple[str, str]] = set()
    for statement in installation.statements(worker):
        verb = statement.split(maxsplit=1)[0].upper()
        named |= {(verb, table) for table in tables if re.search(rf"\b{table}\b", statement)}
    # Without these the watcher did not see what it is there to see.
    assert {("SELECT", outbox), ("UPDATE", outbox)} <= named, f"{worker.name} ran {installation.statements(worker)}"
    if role == "consumer":
        assert records & {table for _, table in named}

    own = {outbox} | {table for table in tables if table.startswith("outbox_")}
    foreign = {(verb, table) for verb, table in named if table not in own}
    if role == "consumer":
        foreign = {(verb, table) for verb, table in foreign if table not in records}
        if service in HANDS_ON_TO:
            allowed = ("INSERT", tables_of(HANDS_ON_TO[service])[0])
            assert allowed in foreign, f"{service} handed nothing on"
            foreign.discard(allowed)
        if service == "active-scheduler":
            # What to propose is a seam; the project's own builder looks at the user's task.
            foreign.discard(("SELECT", "tasks"))
    assert not foreign, f"{worker.name} touched {foreign}"
