"""What the pages of the admin show, and that nothing of what they show is taken for markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from django.contrib import admin
from django.db import connections
from django.db.utils import OperationalError
from django.test import Client
from django.utils import timezone

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.admin import routes
from outbox.admin.health import Severity
from outbox.admin.rendering import moment
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError
from outbox.management.console import console_on, show
from outbox.management.status_report import ServiceReport
from outbox.management.status_table import TableView
from outbox.models import RejectedRecord, ServiceSwitch, ShardLease, Worker
from outbox.operations.statistics import service_status
from outbox.registry.catalog import route_registry
from outbox.workers import lag
from tests.integration.admin_rows import (
    DATABASES,
    DEAD,
    MESSAGES,
    REJECTED,
    ROUTES,
    SERVICES,
    SNAPSHOTS,
    add,
    add_dead,
    add_rejected,
    at,
    model_of,
    snapshot,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db(databases=DATABASES)

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects the tags and the attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.inside = ""
        self.broken: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag == "img" or any(name.startswith("on") for name in names):
            self.broken.append(tag)
        if tag == "script" and not names & {"src", "type"}:
            self.broken.append(tag)


def assert_harmless(client: Client, url: str, *, shows: str = "<script>alert(") -> None:
    """Check that a page shows the evil text as text."""
    response = client.get(url)
    assert response.status_code == 200, url
    content = response.content.decode()
    tags = Tags()
    tags.feed(content)
    assert tags.broken == [], url
    escaped = shows.replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in content, url
    assert "<script>alert" not in content, url


def test_no_data_is_taken_for_markup(root: Client, outbox_alias: str) -> None:
    columns: dict[str, Any] = {
        "key": EVIL,
        "last_error": EVIL,
        "error_class": EVIL,
        "traceback": EVIL,
        "topic": EVIL,
        "traceparent": EVIL[:64],
        "payload": snapshot(EVIL, phase=EVIL, snapshot_json=json.dumps({EVIL: EVIL})),
    }
    row = add_dead(**columns)
    odd = add_dead(**{**columns, "event_type": EVIL[:64], "status": EVIL[:32]})
    add_dead(**{**columns, "resolved_at": at(0), "resolved_by": EVIL, "resolution": EVIL})
    record = add_rejected(
        outbox_alias,
        topic=EVIL,
        reason=EVIL,
        key=EVIL.encode(),
        value=json.dumps({EVIL: EVIL}).encode(),
        headers=json.dumps([[EVIL, EVIL]]),
        installation=EVIL[:64],
        resolved_by=EVIL,
        resolved_at=at(0),
    )
    state = AgentStateSnapshotRecord.objects.using(outbox_alias).create(
        conversation_id=EVIL, user_id=1, phase=EVIL[:32], snapshot_json=json.dumps({EVIL: EVIL})
    )
    add_rejected(outbox_alias, installation=EVIL[:64])
    ServiceSwitch.objects.using(outbox_alias).create(service="agent", relay_paused=True, reason=EVIL, changed_by=EVIL)
    Worker.objects.using(outbox_alias).create(
        worker_id="w", service="agent", role="relay", host=EVIL, pid=1, seen_at=timezone.now() + timedelta(hours=1)
    )
    for url in (
        MESSAGES,
        f"{MESSAGES}?status=dead",
        f"{MESSAGES}{row.pk}/change/",
        f"{MESSAGES}{odd.pk}/change/",
        f"{MESSAGES}{row.pk}/edit/",
        DEAD,
        f"{DEAD}?state=given-up",
        f"{REJECTED}?state=all",
        f"{REJECTED}{record.pk}/change/"
        if outbox_alias == "default"
        else f"{REJECTED}{outbox_alias}:{record.pk}/change/",
        SNAPSHOTS,
        f"{SNAPSHOTS}{state.pk}/change/",
        ROUTES,
        f"{ROUTES}agent/relay/switch/",
    ):
        assert_harmless(root, url)


@pytest.mark.parametrize("url", [MESSAGES, DEAD, REJECTED, SNAPSHOTS])
@pytest.mark.parametrize("name", ["key", "event_type", "error_class", "service", "state", "status", "after", "id"])
def test_nothing_in_the_address_is_taken_for_markup(root: Client, url: str, name: str) -> None:
    content = root.get(url, {name: EVIL}, follow=True).content.decode()
    assert "<script>alert" not in content
    assert "<img" not in content


def test_reason_given_to_the_question_is_no_markup(root: Client) -> None:
    row = add_dead()
    form = {"action": "give-up", "selected": f"agent:{row.pk},{EVIL}", "confirmed": "1", "reason": ""}
    assert "<script>alert" not in root.post(f"{DEAD}?x={EVIL}", form).content.decode()


# --- one event ---------------------------------------------------------------------------------------------------


def test_dead_event_shows_why_when_and_what(root: Client, outbox_alias: str) -> None:
    row = add_dead(
        age=timedelta(minutes=3, seconds=2), last_error="ValueError: no such user\nsecond line", key="conv-9"
    )
    page = root.get(f"{MESSAGES}{row.pk}/change/")
    content = page.content.decode()
    assert "died 3m 2s ago" in content
    assert "ValueError: no such user\nsecond line" in content
    assert "Traceback (most recent call last)" in content
    assert "&quot;conversation_id&quot;: &quot;conv-9&quot;" in content
    assert "&quot;snapshot_json&quot;: (JSON text)" in content
    assert "20 of 20" in content
    assert page.context["detail"].size == f"{len(row.payload)} B"


def test_pending_event_names_the_one_that_it_waits_for(root: Client, outbox_alias: str) -> None:
    add("agent", key="conv-1", event_type="task.urgency.promote.requested")  # another service's: not waited for
    add("agent", key="conv-1", status="consumed")
    first = add("agent", key="conv-1", status="published")
    add("agent", key="conv-1", status="pending")
    waiting = add("agent", key="conv-1")
    page = root.get(f"{MESSAGES}{waiting.pk}/change/")
    assert page.context["detail"].blocker.id == first.pk
    assert root.get(f"{MESSAGES}{first.pk}/change/").context["detail"].blocker is None
    parked = add_dead(key="conv-2", parks_key=True)
    add_dead(key="conv-2")
    behind = add("agent", key="conv-2")
    assert root.get(f"{MESSAGES}{behind.pk}/change/").context["detail"].blocker.id == parked.pk


def test_row_of_another_services_event_says_so(root: Client) -> None:
    row = add("agent", event_type="task.urgency.promote.requested")
    assert "rehome_outbox" in root.get(f"{MESSAGES}{row.pk}/change/").content.decode()
    assert "foreign" in root.get(MESSAGES).content.decode()


def test_large_payload_is_cut_and_can_be_downloaded(root: Client, outbox_alias: str) -> None:
    row = add_dead(payload=snapshot(snapshot_json=json.dumps({"a": "ü" * 200_000}, ensure_ascii=False)))
    page = root.get(f"{MESSAGES}{row.pk}/change/")
    assert len(page.content) < 200_000
    assert "Only the first 65,536 characters are shown." in page.content.decode()
    assert page.context["detail"].size.endswith("MiB")
    assert len(root.get(DEAD).content) < 60_000
    download = root.get(f"{MESSAGES}{row.pk}/payload/")
    assert download.content.decode() == row.payload
    assert download["Content-Disposition"] == f'attachment; filename="agent-{row.pk}.json"'
    assert download["X-Content-Type-Options"] == "nosniff"


def test_page_of_a_suspect_event_shows_how_often_it_was_interrupted(root: Client, outbox_alias: str) -> None:
    suspect, sound = add(interruptions=3), add()

    facts = dict(root.get(f"{MESSAGES}{suspect.pk}/change/").context["detail"].facts)
    assert facts["Interruptions in a row"] == "3 of 5"
    assert facts["Attempts that failed"] == "0 of 20"
    assert "Interruptions in a row" not in dict(root.get(f"{MESSAGES}{sound.pk}/change/").context["detail"].facts)


@pytest.mark.parametrize("address", ["0/change/", "x/change/", f"{10**30}/change/", "999999/payload/"])
def test_row_that_is_gone_leads_back_to_the_list(root: Client, address: str) -> None:
    answer = root.get(f"{MESSAGES}{address}", follow=True)
    assert answer.redirect_chain == [(MESSAGES, 302)]
    assert "There is no message" in answer.content.decode()


@pytest.mark.parametrize("key", ["0", "x", "nowhere:1", "default:x", f"{10**30}"])
def test_record_that_is_gone_leads_back_to_the_list(root: Client, key: str) -> None:
    answer = root.get(f"{REJECTED}{key}/change/", follow=True)
    assert answer.redirect_chain == [(REJECTED, 302)]
    assert root.get(f"{SNAPSHOTS}0/change/", follow=True).redirect_chain == [(SNAPSHOTS, 302)]


def test_history_tells_who_did_what(root: Client) -> None:
    row = add_dead()
    root.post(f"{MESSAGES}{row.pk}/give-up/", {"reason": "too old"})
    history = root.get(f"{MESSAGES}{row.pk}/history/").content.decode()
    assert "Given up: too old" in history
    assert "root" in history


def test_rejected_record_shows_its_bytes(root: Client) -> None:
    record = add_rejected(key=None, value=b"\xff\x00\x01\x02", headers='[["h", "v"]]', reason="no JSON")
    content = root.get(f"{REJECTED}{record.pk}/change/").content.decode()
    assert "00000000  ff 00 01 02" in content
    assert "There is none (null)." in content
    assert "no JSON" in content
    RejectedRecord.objects.update(headers="broken", value=b"")
    content = root.get(f"{REJECTED}{record.pk}/change/").content.decode()
    assert "broken" in content
    assert "It is empty." in content


def test_records_of_another_installation_are_one_line_that_says_how_many(root: Client, outbox_alias: str) -> None:
    last = at(0)
    group = add_rejected(
        outbox_alias, installation="of-staging", records=1200, last_partition=3, last_offset=77, last_received_at=last
    )
    [line] = root.get(REJECTED).context["lines"]
    assert (line.group, line.received.exact) == ("1,200 records of installation of-staging", moment(last, last).exact)
    content = root.get(line.url).content.decode()
    assert "It stands for 1,200 records of installation of-staging" in content
    assert "[3] @ 77" in content
    assert group.digest not in content, "it is not that of the record which is shown"

    routes_line = line_of(root)
    assert routes_line.colour == Severity.BAD
    [text] = [text for text in texts(routes_line) if "another installation" in text]
    assert "1,200, of-staging" in text
    assert "NAMESPACE" in text


# --- the routes page ---------------------------------------------------------------------------------------------


def line_of(client: Client, service: str = "agent") -> Any:
    page = client.get(ROUTES)
    assert page.status_code == 200
    return next(line for line in page.context["lines"] if line.service == service)


def texts(line: Any) -> list[str]:
    return [problem.text for problem in line.problems]


def test_every_service_has_a_line_with_its_route(root: Client, outbox_alias: str) -> None:
    page = root.get(ROUTES)
    content = page.content.decode()
    assert {line.service for line in page.context["lines"]} == set(SERVICES)
    for text in (
        "active_scheduler_outbox_messages",
        "smartflow.active-scheduler.outbox",
        "smartflow-active-scheduler-outbox-consumer",
        "agent.state.snapshot.persist",
        "All services are well.",
    ):
        assert text in content


def test_counts_lead_to_what_they_count(root: Client, outbox_alias: str) -> None:
    for status in ("pending", "published", "published", "consumed"):
        add(status=status)
    add_dead()
    add_dead(resolved_at=at(0))
    add_rejected(outbox_alias)
    numbers = {number.label: number for number in line_of(root).numbers}
    assert {label: number.text for label, number in numbers.items()} == {
        "pending": "1",
        "published": "2",
        "consumed": "1",
        "dead": "1",
        "rejected": "1",
    }
    for number in numbers.values():
        assert len(root.get(number.url).context["lines"]) == int(number.text)


def test_dead_is_the_number_that_outbox_status_says(root: Client, outbox_alias: str) -> None:
    for number in range(5):
        add_dead(resolved_at=at(0) if number < 2 else None)
    (on_page,) = (number.text for number in line_of(root).numbers if number.label == "dead")
    status = service_status(route_registry().catalog.route("agent"), route_registry(), ttl=timedelta(seconds=6))
    report = ServiceReport(status.route, status, database_problem="", lag=None, broker_problem="", attention=())
    out = StringIO()
    show(console_on(out), *TableView(dated=False).parts([report]))
    header, line = out.getvalue().splitlines()
    assert (on_page, line.split()[header.split().index("DEAD")]) == ("3", "3")
    assert len(root.get(f"{DEAD}?service=agent").context["lines"]) == 3


def test_what_is_wrong_is_said_the_worst_first(root: Client, outbox_alias: str) -> None:
    add(created_at=timezone.now() - timedelta(minutes=15), next_retry_at=timezone.now() - timedelta(minutes=14))
    add(status="published")
    add_dead()
    add_rejected(outbox_alias)
    put_off = timezone.now() + timedelta(hours=1)
    add(event_type="task.urgency.promote.requested", next_retry_at=put_off, put_back_count=1)
    line = line_of(root)
    assert texts(line) == [
        "Events are pending and no relay runs.",
        "Events are published and no consumer runs.",
        f"The oldest event that is due waits for {line.oldest}.",
        "1 event is dead and open.",
        "1 broker record was rejected.",
        "1 rows belong to other services: run rehome_outbox.",
    ]
    assert line.colour == Severity.BAD
    assert line.oldest.startswith("15m")
    assert "1 of 5 services need a look." in root.get(ROUTES).content.decode()


def test_workers_are_named_with_their_share(root: Client, outbox_alias: str) -> None:
    later = timezone.now() + timedelta(hours=1)
    add()
    for role, seen_at in (("relay", later), ("consumer", later), ("relay", timezone.now() - timedelta(hours=1))):
        name = f"{role}-{seen_at == later}"
        Worker.objects.using(outbox_alias).create(
            worker_id=name, service="agent", role=role, host="web-1", pid=42, seen_at=seen_at, started_at=at(0)
        )
    for shard in range(3):
        ShardLease.objects.using(outbox_alias).create(
            service="agent", role="relay", shard=shard, owner="relay-True", expires_at=later
        )
    relay, consumer = line_of(root).parts
    assert len(relay.workers) == len(consumer.workers) == 1
    assert relay.workers[0].startswith("web-1:42, 3 shards, up ")
    assert texts(line_of(root)) == []


def test_paused_service_says_who_and_why(root: Client, outbox_alias: str) -> None:
    add()
    ServiceSwitch.objects.using(outbox_alias).create(
        service="agent", relay_paused=True, reason="broker moves", changed_by="anna"
    )
    assert texts(line_of(root)) == ["The relay is paused (anna, 0s ago: broker moves)."]


def test_service_whose_database_is_away_hides_no_other(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = routes.service_status

    def fail_for_agent(route: ServiceRoute, *args: Any, **more: Any) -> Any:
        if route.service == "agent":
            raise OperationalError("connection refused")
        return ask(route, *args, **more)

    monkeypatch.setattr(routes, "service_status", fail_for_agent)
    assert texts(line_of(root)) == ["The database 'default' cannot be read: connection refused"]
    assert line_of(root, "task").numbers


def test_switched_off_sending_is_said(root: Client, settings: Any) -> None:
    settings.OUTBOX = {"ENABLED": False}
    assert "Sending is switched off" in root.get(ROUTES).content.decode()


# --- lag ---------------------------------------------------------------------------------------------------------


def test_lag_is_shown(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = lag.LagProbe(lambda services: {route.service: 1234 for route in services})
    monkeypatch.setattr(routes, "lag_report", probe.report)
    assert line_of(root).lag == "1,234"


def test_broker_that_is_away_is_said_and_hides_nothing(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(services: object) -> dict[str, int | None]:
        raise BrokerUnavailableError("Kafka at nowhere: connection refused")

    monkeypatch.setattr(routes, "lag_report", lag.LagProbe(fail, patience=timedelta(seconds=5)).report)
    line = line_of(root)
    assert texts(line) == ["The broker does not answer: Kafka at nowhere: connection refused"]
    assert line.numbers


# --- the house ---------------------------------------------------------------------------------------------------


def test_every_outbox_table_has_a_page(root: Client) -> None:
    for service in SERVICES:
        assert admin.site.is_registered(model_of(service))


def test_pages_without_a_table_need_no_migration() -> None:
    assert "outbox_route" not in connections["default"].introspection.table_names()
