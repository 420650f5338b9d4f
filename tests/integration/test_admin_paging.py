"""Lists on real tables: every row once, forward and back, on every database, whatever the columns hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.admin import dead, filters, messages, records, rejected
from tests.integration.admin_rows import (
    DATABASES,
    DEAD,
    MESSAGES,
    REJECTED,
    SNAPSHOTS,
    add,
    add_dead,
    add_rejected,
    at,
)
from tests.services import require

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db(databases=DATABASES)

PAGE = 3


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dead, messages, records, rejected):
        monkeypatch.setattr(module, "PAGE_SIZE", PAGE)


def forward(client: Client, url: str) -> list[Any]:
    """Return the pages from ``url`` on, by the links that they show."""
    return list(_follow(client, url, "next"))


def backward(client: Client, page: Any, url: str) -> list[Any]:
    """Return the pages before ``page``, by the links that they show."""
    path = url.partition("?")[0]
    link = _link(page, "prev")
    return list(_follow(client, path + link, "prev")) if link else []


def _follow(client: Client, url: str, rel: str) -> Iterator[Any]:
    path, link = url.partition("?")[0], url
    for _ in range(200):
        page = client.get(link)
        assert page.status_code == 200
        yield page
        following = _link(page, rel)
        if not following:
            return
        link = path + following
    raise AssertionError("the pages have no end")


def _link(page: Any, rel: str) -> str:
    found = re.search(f'rel="{rel}" href="([^"]*)"', page.content.decode())
    return unescape(found[1]) if found else ""


def shown(pages: list[Any]) -> list[Any]:
    """Return what the lines of ``pages`` name, in their order."""
    return [_name(line) for page in pages for line in page.context["lines"]]


def _name(line: Any) -> Any:
    if isinstance(line, tuple):
        return line[1]  # a record: (url, id, cells)
    line = getattr(line, "line", line)
    return getattr(line, "token", None)


def assert_pages_hold(client: Client, url: str, expected: list[Any]) -> None:
    """Check that paging forward and back from ``url`` meets each of ``expected`` once, in that order."""
    pages = forward(client, url)
    assert shown(pages) == expected
    back = backward(client, pages[-1], url)
    assert shown(back[::-1]) == shown(pages[:-1])
    assert len(back) == len(pages) - 1


# --- the messages of a service -----------------------------------------------------------------------------------


def test_messages_are_paged_by_id(root: Client, outbox_alias: str) -> None:
    rows = [add(status=status) for status in ("pending", "published", "consumed", "dead") * 3]
    assert_pages_hold(root, MESSAGES, [f"agent:{row.pk}" for row in rows[::-1]])


def test_messages_of_a_status_are_paged_by_due_time_also_without_one(root: Client, outbox_alias: str) -> None:
    due = [None, at(3), at(1), at(1), None, at(2), at(1), at(2.000001), at(2.5), None, None, at(1.999999), at(3)]
    rows = [add(next_retry_at=moment) for moment in due]
    add(status="consumed")
    order = sorted(rows, key=lambda row: (row.next_retry_at or at(-1), row.pk), reverse=True)
    assert_pages_hold(root, f"{MESSAGES}?status=pending", [f"agent:{row.pk}" for row in order])


def test_all_rows_without_a_due_time_are_paged(root: Client, outbox_alias: str) -> None:
    rows = [add(next_retry_at=None) for _ in range(8)]
    assert_pages_hold(root, f"{MESSAGES}?status=pending", [f"agent:{row.pk}" for row in rows[::-1]])


@pytest.mark.parametrize("outbox_alias", ["mariadb", "mysql"], indirect=True)
def test_rows_with_zero_dates_are_paged(root: Client, outbox_alias: str) -> None:
    """They come behind those with a time and before those with NULL."""
    dated, zero, none = ([add(next_retry_at=moment) for _ in range(4)] for moment in (at(1), at(2), None))
    with connections[outbox_alias].cursor() as cursor:
        cursor.execute("SET @usual = @@SESSION.sql_mode, SESSION sql_mode = ''")
        cursor.execute(
            f"UPDATE {zero[0]._meta.db_table} SET next_retry_at = '0000-00-00 00:00:00'"
            f" WHERE id IN ({', '.join(str(row.pk) for row in zero)})"
        )
        cursor.execute("SET SESSION sql_mode = @usual")
    order = [*dated[::-1], *zero[::-1], *none[::-1]]
    assert_pages_hold(root, f"{MESSAGES}?status=pending", [f"agent:{row.pk}" for row in order])


def test_times_of_the_databases_own_clock_are_paged(root: Client, outbox_alias: str) -> None:
    """SQLite keeps times as text: by the column's default with three digits, from Django with six or none."""
    rows = [add() if number % 2 else add(next_retry_at=at(number)) for number in range(9)]
    pages = forward(root, f"{MESSAGES}?status=pending")
    assert sorted(shown(pages)) == sorted(f"agent:{row.pk}" for row in rows)
    assert shown(backward(root, pages[-1], MESSAGES)[::-1]) == shown(pages[:-1])


def test_messages_of_a_key_are_paged_over_all_statuses(root: Client, outbox_alias: str) -> None:
    rows = [add(key="Conv-1", status=status) for status in ("dead", "pending", "consumed", "published") * 3]
    add(key="conv-1")
    add(key="other")
    assert_pages_hold(root, f"{MESSAGES}?key=Conv-1", [f"agent:{row.pk}" for row in rows[::-1]])
    dead_rows = [f"agent:{row.pk}" for row in rows[::-1] if row.status == "dead"]
    assert_pages_hold(root, f"{MESSAGES}?key=Conv-1&status=dead", dead_rows)


@pytest.mark.parametrize("query", ["event_type=rare", "event_type=rare&status=pending", "event_type=rare&key=conv-1"])
def test_rare_event_type_is_found_though_each_look_is_short(
    root: Client, outbox_alias: str, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    _look_at_most(monkeypatch, 4)
    rows = [add(event_type="rare" if number % 7 == 0 else "common", next_retry_at=at(number)) for number in range(30)]
    pages = forward(root, f"{MESSAGES}?{query}")
    rare = [f"agent:{row.pk}" for row in rows[::-1] if row.event_type == "rare"]
    assert shown(pages) == rare
    back = backward(root, pages[-1], f"{MESSAGES}?{query}")
    # The first page is given whole, so it may overlap with the one before it.
    assert list(dict.fromkeys(shown([*back[::-1], pages[-1]]))) == rare
    assert "Look further" in pages[0].content.decode()


@pytest.mark.parametrize(
    "query", ["status=nonsense", "after=nonsense", "before=nonsense", "before=", "after=&status=pending", "x=1&y=2"]
)
def test_nonsense_in_the_address_is_passed_over(root: Client, query: str) -> None:
    row = add()
    assert shown([root.get(f"{MESSAGES}?{query}")]) == [f"agent:{row.pk}"]


def test_row_is_found_by_its_id(root: Client) -> None:
    row = add()
    assert root.get(f"{MESSAGES}?id=%23{row.pk}")["Location"] == f"{MESSAGES}{row.pk}/change/"
    for wrong in ("0", "x", "9" * 30, "-1"):
        assert "There is no message" in root.get(f"{MESSAGES}?id={wrong}", follow=True).content.decode()


# --- the dead of all services ------------------------------------------------------------------------------------


def test_dead_of_all_services_are_merged_by_the_time_of_death(root: Client, outbox_alias: str) -> None:
    services = ("agent", "task", "memory", "agent", "notification", "agent", "active-scheduler")
    rows = [(service, add_dead(service, next_retry_at=at(number % 5))) for number, service in enumerate(services * 3)]
    rows.append(("task", add_dead("task", next_retry_at=None)))
    pages = forward(root, DEAD)
    assert sorted(shown(pages)) == sorted(f"{service}:{row.pk}" for service, row in rows)
    times = {f"{service}:{row.pk}": row.next_retry_at or at(-1) for service, row in rows}
    assert [times[token] for token in shown(pages)] == sorted(times.values(), reverse=True)
    assert shown(backward(root, pages[-1], DEAD)[::-1]) == shown(pages[:-1])


def test_dead_of_services_in_different_databases_are_merged(root: Client, settings: Any) -> None:
    for alias in ("mariadb", "mysql", "postgres"):
        require(alias)
    homes = {"agent": "default", "task": "mariadb", "memory": "postgres", "notification": "mysql"}
    settings.OUTBOX = {"SERVICES": {service: {"DATABASE": alias} for service, alias in homes.items()}}
    rows = [
        (service, add_dead(service, next_retry_at=at(100 - number)))
        for number, service in enumerate(
            ("agent", "task", "memory", "notification", "memory", "task", "agent", "agent") * 2
        )
    ]
    assert_pages_hold(root, DEAD, [f"{service}:{row.pk}" for service, row in rows])
    for (service, row), alias in ((pair, homes[pair[0]]) for pair in rows):
        assert type(row).objects.using(alias).filter(pk=row.pk).exists(), service


def test_dead_are_filtered(root: Client, outbox_alias: str) -> None:
    rows = {
        "plain": add_dead(next_retry_at=at(4)),
        "other class": add_dead(error_class="KeyError", next_retry_at=at(3)),
        "other type": add_dead(event_type="chat.history.persist.requested", next_retry_at=at(2)),
        "given up": add_dead(resolved_at=at(0), resolved_by="anna", next_retry_at=at(1)),
    }
    agent = {name: f"agent:{row.pk}" for name, row in rows.items()}
    task = f"task:{add_dead('task', next_retry_at=at(0)).pk}"
    add(status="consumed")

    def found(query: str) -> list[Any]:
        return shown(forward(root, f"{DEAD}?{query}"))

    assert found("") == [agent["plain"], agent["other class"], agent["other type"], task]
    assert found("service=task") == [task]
    assert found("service=unknown") == found("")
    assert found("error_class=KeyError") == [agent["other class"]]
    assert found("event_type=chat.history.persist.requested") == [agent["other type"]]
    assert found("state=given-up") == [agent["given up"]]
    assert found("state=all&service=agent") == list(agent.values())


def test_open_dead_behind_many_given_up_are_found(
    root: Client, outbox_alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _look_at_most(monkeypatch, 4)
    for number in range(20):
        add_dead(resolved_at=at(0), next_retry_at=at(100 + number))
    old = add_dead(next_retry_at=at(1))
    pages = forward(root, DEAD)
    assert shown(pages) == [f"agent:{old.pk}"]
    assert len(pages) > 4


# --- rejected records and snapshots ------------------------------------------------------------------------------


def test_rejected_records_are_paged(root: Client, outbox_alias: str) -> None:
    records = [
        add_rejected(outbox_alias, service="task" if number % 3 else "agent", resolved_at=at(0) if number % 4 else None)
        for number in range(16)
    ]
    everything = [f"{outbox_alias}:{record.pk}" for record in records[::-1]]
    assert_pages_hold(root, f"{REJECTED}?state=all", everything)
    still_open = [f"{outbox_alias}:{record.pk}" for record in records[::-1] if record.resolved_at is None]
    assert_pages_hold(root, REJECTED, still_open)
    of_task = [f"{outbox_alias}:{record.pk}" for record in records[::-1] if record.service == "task"]
    assert_pages_hold(root, f"{REJECTED}?state=all&service=task", of_task)


def test_rejected_records_of_different_databases_are_merged(root: Client, settings: Any) -> None:
    require("mariadb")
    settings.OUTBOX = {"SERVICES": {"task": {"DATABASE": "mariadb"}}}
    records = [
        (alias, add_rejected(alias, received_at=at(number)))
        for number, alias in enumerate(("default", "mariadb", "mariadb", "default", "default", "mariadb", "default"))
    ]
    assert_pages_hold(root, REJECTED, [f"{alias}:{record.pk}" for alias, record in records[::-1]])
    alias, record = records[1]
    page = root.get(f"{REJECTED}{alias}:{record.pk}/change/")
    assert page.status_code == 200
    assert page.context["line"].token == f"mariadb:{record.pk}"


def test_snapshots_are_paged_and_filtered(root: Client, outbox_alias: str) -> None:
    snapshots = [
        AgentStateSnapshotRecord.objects.using(outbox_alias).create(
            conversation_id=f"Conv-{number}", user_id=number % 2, snapshot_json="{}"
        )
        for number in range(8)
    ]
    assert_pages_hold(root, SNAPSHOTS, [snapshot.pk for snapshot in snapshots[::-1]])
    assert_pages_hold(root, f"{SNAPSHOTS}?user_id=1", [snapshot.pk for snapshot in snapshots[::-1] if snapshot.user_id])
    assert shown([root.get(f"{SNAPSHOTS}?conversation_id=Conv-3")]) == [snapshots[3].pk]
    assert shown([root.get(f"{SNAPSHOTS}?conversation_id=conv-3")]) == []
    for nonsense in ("x", "9" * 30):
        answer = root.get(f"{SNAPSHOTS}?user_id={nonsense}", follow=True).content.decode()
        assert "No row can have such a value." in answer


# --- statements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        MESSAGES,
        f"{MESSAGES}?status=pending",
        f"{MESSAGES}?key=conv-1",
        f"{MESSAGES}?event_type=x&status=dead",
        DEAD,
        f"{DEAD}?state=all&error_class=x",
        REJECTED,
        SNAPSHOTS,
        "/admin/outbox/route/",
    ],
)
def test_number_of_statements_does_not_grow_with_the_rows(
    root: Client, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any, url: str
) -> None:
    for module in (dead, messages, records, rejected):
        monkeypatch.setattr(module, "PAGE_SIZE", 10)
    _fill(1)
    root.get(url)
    few = _statements(root, url)
    _fill(15)
    many = _statements(root, url)
    assert len(many) <= len(few) + 1
    for statement in many:
        # Counting is for windows only: the limit stands inside.
        assert not re.search(r"COUNT\(\*\)(?!.* FROM \(SELECT .* LIMIT \d+\) \w+$)", statement), statement
    with django_assert_max_num_queries(len(few) + 1):
        root.get(url)


def test_lists_load_no_large_column(root: Client, django_assert_num_queries: Any) -> None:
    _fill(3)
    for url in (MESSAGES, f"{MESSAGES}?status=dead", REJECTED, SNAPSHOTS):
        for statement in _statements(root, url):
            if "outbox_" in statement or "snapshot_records" in statement:
                assert not re.search(r"\b(payload|traceback|snapshot_json|value)\b", statement), statement


def _fill(count: int) -> None:
    for number in range(count):
        for service in ("agent", "task"):
            add_dead(service)
            add_dead(service, error_class="x", event_type="x")
        add(status="pending")
        add_rejected()
        AgentStateSnapshotRecord.objects.create(conversation_id=f"c-{count}-{number}", user_id=1, snapshot_json="{}")


def _statements(client: Client, url: str) -> list[str]:
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connections["default"]) as captured:
        assert client.get(url).status_code == 200
    return [query["sql"] for query in captured]


def _look_at_most(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(filters, "WINDOW", rows)
    monkeypatch.setattr(filters, "SEQUENTIAL_WINDOW", rows)
