"""One demo from nothing to its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db.models import QuerySet

from outbox.coordination.leases import CONSUMER, RELAY
from outbox.lifecycle import UNFINISHED
from outbox.management.console import console_on
from outbox.models import OutboxMessage, RejectedRecord, Worker
from outbox.registry.catalog import service_models
from scripts.demo import servers
from scripts.demo.audit import Audit
from scripts.demo.business import make_business, publish_business
from scripts.demo.business_audit import BusinessAudit
from scripts.demo.errors import DemoError
from scripts.demo.processes import Command, workers
from scripts.demo.progress import Progress, count_rows
from scripts.demo.publisher import publish_story, send_garbage
from scripts.demo.report import PASSWORD, USER, say_how_to_look, say_what_happened, say_what_was_checked
from scripts.demo.stage import SERVICES, Kind, Stage, last_stage
from scripts.demo.story import Published, make_story

_LOOK_S = 0.05
_SHOWN_UNFINISHED = 5


def run(stage: Stage, *, events: int, time_limit: timedelta) -> None:
    """Play the demo on ``stage``.

    :raises DemoError: it did not come to its end in time, or a check does not hold.
    """
    deadline = time.monotonic() + time_limit.total_seconds()
    _prepare(stage)
    story = make_story(events)
    business = make_business(events)
    published = Published()
    garbage = 1 if stage.kind is Kind.KAFKA else 0
    total = story.events + len(story.poisons) + business.events
    console = console_on(sys.stdout)
    with workers(stage) as running:
        _wait_for_workers(running, deadline)
        print(
            f"Publishing {story.events:,} events of {story.conversations} conversations and {len(story.poisons)}"
            f" poisonous rows, and what {len(business.users)} users do, while the workers work …"
        )
        with Progress(console, total) as progress:
            for _act in chain(publish_story(story, published), publish_business(business)):
                if progress.due:
                    progress.show(count_rows())
            if garbage:
                send_garbage()
            _wait_for_end(running, progress, deadline, garbage=garbage)
        for command in running:
            command.stop()
    audit = Audit(published, garbage=garbage)
    checks = [*audit.checks(), *BusinessAudit(business, audit.rows).checks()]
    say_what_happened(console, audit, published, running)
    say_what_was_checked(console, checks)
    if not all(check.ok for check in checks):
        raise DemoError("not everything that was checked holds; see BROKEN above.")
    say_how_to_look(console, stage)


def _prepare(stage: Stage) -> None:
    """Make everything new: database, tables, the admin's user."""
    print(f"Making a fresh database ({stage.description}) …")
    servers.remove_topics(last_stage(stage.folder))
    stage.clear()
    servers.make_database(stage)
    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser(USER, password=PASSWORD)
    stage.remember()


def _wait_for_workers(running: Sequence[Command], deadline: float) -> None:
    """Wait until all have said that they are there."""
    print("Starting " + "\n     and ".join(f"`{command.line}`" for command in running) + " …")
    wanted = {(service, role) for service in SERVICES for role in (RELAY, CONSUMER)}

    def are_there() -> bool:
        return set(Worker.objects.values_list("service", "role")) >= wanted

    if not _comes_true(are_there, running, deadline):
        raise DemoError("relays and consumers did not come up in time.")


def _wait_for_end(running: Sequence[Command], progress: Progress, deadline: float, *, garbage: int) -> None:
    """Wait until every row is consumed or dead, and the records that are nobody's have been seen."""

    def waiting(model: type[OutboxMessage]) -> QuerySet[OutboxMessage]:
        return QuerySet(model).filter(status__in=UNFINISHED).order_by("id")[:_SHOWN_UNFINISHED]

    def unfinished() -> list[OutboxMessage]:
        # In this order: whoever publishes for another service comes before it, and its effect commits with the event.
        return [row for service in SERVICES for row in waiting(service_models()[service])]

    def is_over() -> bool:
        if progress.due:
            progress.show(count_rows())
        return not unfinished() and RejectedRecord.objects.count() >= garbage

    if _comes_true(is_over, running, deadline):
        progress.show(count_rows())
        return
    shown = "\n".join(
        f"    {row.service} row {row.pk} {row.event_type} {row.status}, {row.retry_count} failed attempts,"
        f" due {row.next_retry_at}: {row.last_error or 'no error'}"
        for row in unfinished()
    )
    raise DemoError(f"not everything is finished at the time limit; the first of each service:\n{shown}")


def _comes_true(condition: Callable[[], bool], running: Sequence[Command], deadline: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        for command in running:
            command.check()
        time.sleep(_LOOK_S)
    return True
