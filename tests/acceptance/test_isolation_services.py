"""One process for the workers of five services: what one of them lacks stops no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from tests.acceptance.services_harness import ServicesInstallation
from tests.acceptance.services_publisher import Load, Subject
from tests.conftest import SERVICES

pytest_plugins = ("tests.acceptance.services_fixtures",)

InstallServices = Callable[..., ServicesInstallation]

BROKEN = "task"
OTHERS = [service for service in SERVICES if service != BROKEN]
OF_BROKEN: Subject = "urgency"
OF_OTHERS: list[Subject] = [subject for subject in get_args(Subject) if subject != OF_BROKEN]


def rename(installation: ServicesInstallation, table: str, name: str) -> None:
    """Give a table another name, as a failed migration may leave it."""
    installation.database.execute(f"ALTER TABLE {table} RENAME TO {name}")


@pytest.mark.parametrize(
    ("database", "broker"), [("mariadb", "kafka"), ("mysql", "kafka"), ("postgres", "table"), ("postgres", "kafka")]
)
def test_table_that_is_away_stops_its_own_service_only(
    install_services: InstallServices, database: str, broker: str
) -> None:
    """Its records are on their way when its table goes, so that relay and consumer both need it."""
    installation = install_services(database=database, broker=broker)
    workers = [installation.manage("relays", "run_relay", *SERVICES, "--create-topics")]
    installation.publish_services_load(Load(prefix="a", subjects=list(get_args(Subject)), transactions=40, seed=81))
    installation.wait(lambda: installation.statuses(BROKEN).keys() == {"published"}, "all is sent", alive=workers)
    rename(installation, "task_outbox_messages", "task_outbox_messages_away")
    workers.append(installation.manage("consumers", "consume", *SERVICES, "--create-topics"))
    for worker in workers:
        installation.wait(lambda worker=worker: "failed, retrying: service=task" in worker.text, "said", alive=workers)
    installation.publish_services_load(Load(prefix="b", subjects=OF_OTHERS, transactions=40, seed=82))
    installation.wait_until_all_done(*OTHERS, alive=workers)

    rename(installation, "task_outbox_messages_away", "task_outbox_messages")
    installation.publish_services_load(Load(prefix="c", subjects=[OF_BROKEN], transactions=10, seed=83))
    installation.wait_until_all_done(alive=workers)
    rows = [row for service in SERVICES for row in installation.rows(service)]
    assert installation.read_journals().committed <= {row.event_id for row in rows}
    harmed = [row for row in rows if row.status != "consumed" or row.retry_count]
    assert not harmed
    for worker in workers:
        worker.stop()
