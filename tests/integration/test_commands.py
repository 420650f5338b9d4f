"""The operators' commands: what they print, what they exit with, and that an outage does not end them."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import CommandError
from django.db.utils import OperationalError

from outbox.brokers.base import Broker
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.shutdown import StopFlag
from outbox.fields import SHARD_COUNT, UtcNow, from_now
from outbox.management import status_report
from outbox.management.command import OutboxCommand
from outbox.management.commands import outbox_status, outbox_topics
from outbox.models import RejectedRecord, ServiceSwitch, ShardLease, Worker
from outbox.workers import lag
from tests import factories
from tests.conftest import SERVICES, Configure
from tests.repositories import FAILURE
from tests.services import CHECKOUT, require
from tests.waiting import wait_until

FOREIGN = "task.urgency.promote.requested"
HEADER = ("SERVICE", "PENDING", "PUBLISHED", "CONSUMED", "DEAD", "OLDEST DUE", "LAG", "RELAYS", "CONSUMERS", "NOTES")
MINUTE = timedelta(minutes=1)

on_sqlite = pytest.mark.parametrize("database_alias", ["default"], indirect=True)


def run(command: str, *arguments: str) -> str:
    out = StringIO()
    timeout = ["--timeout", "30s"] if command == "outbox_status" and "--timeout" not in arguments else []
    call_command(command, *arguments, *timeout, stdout=out, stderr=StringIO())
    return out.getvalue()


def status(*arguments: str) -> dict[str, str]:
    """Run `outbox_status` for the agent and return its cells by header."""
    header, line, *_ = run("outbox_status", "agent", *arguments).splitlines()
    assert tuple(re.split(" {2,}", header)) == HEADER
    cells = re.split(" {2,}", line)
    return dict(zip(HEADER, [*cells, ""], strict=False))


def as_json(*arguments: str) -> dict[str, Any]:
    content = json.loads(run("outbox_status", "agent", "--json", *arguments))
    assert set(content) == {"generated_at", "services"}
    (service,) = content["services"]
    return dict(service)


def as_json_of_what_failed(command: str, *arguments: str) -> dict[str, Any]:
    """Run a command that says what it found and ends with an error; return what it said of the first service."""
    out = StringIO()
    with pytest.raises(CommandError):
        call_command(command, *arguments, "--timeout", "30s", stdout=out, stderr=StringIO())
    return dict(json.loads(out.getvalue())["services"][0])


def attention(*arguments: str) -> list[str]:
    return list(as_json(*arguments)["attention"])


def working(alias: str, role: str, shards: int, *, number: int, lease_role: str | None = None) -> None:
    """Insert a running worker of the agent that leases some shards."""
    worker_id = f"host:{number}:abc"
    Worker.objects.using(alias).create(
        worker_id=worker_id, service="agent", role=role, host="host.example", pid=number, seen_at=UtcNow()
    )
    until = factories.database_now(alias) + timedelta(hours=1)
    taken = ShardLease.objects.using(alias).count()
    for shard in range(taken, taken + shards):
        ShardLease.objects.using(alias).create(
            service="agent", role=lease_role or role, shard=shard, owner=worker_id, expires_at=until
        )


@pytest.fixture
def at_work(alias: str) -> None:
    """Give every service a relay and a consumer."""
    for number, (service, role) in enumerate(itertools.product(SERVICES, ("relay", "consumer"))):
        Worker.objects.using(alias).create(
            worker_id=f"at work:{number}", service=service, role=role, host="host.example", pid=number, seen_at=UtcNow()
        )


def reject(alias: str, **columns: Any) -> None:
    place = {"topic": "smartflow.agent.outbox", "partition": 0, "offset": 1}
    RejectedRecord.objects.using(alias).create(
        service="agent", digest="d", headers="[]", reason="garbage", **place, **columns
    )


@pytest.fixture
def use_broker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broker], None]:
    """Return a function that has the commands talk to the broker of the test."""

    def use(broker: Broker) -> None:
        @contextmanager
        def opened() -> Iterator[Broker]:
            yield broker

        for module in (lag, outbox_status, outbox_topics):
            monkeypatch.setattr(module, "open_broker", opened)

    return use


# --- outbox_status: the table ------------------------------------------------------------------------------------


def test_status_has_one_line_a_service(alias: str) -> None:
    lines = run("outbox_status").splitlines()
    assert [line.split()[0] for line in lines] == ["SERVICE", *SERVICES]
    assert [line.split()[0] for line in run("outbox_status", "task", "memory").splitlines()[1:]] == ["task", "memory"]


def test_status_of_an_idle_service_has_no_notes(alias: str, at_work: None) -> None:
    assert status() == {
        "SERVICE": "agent",
        "PENDING": "0",
        "PUBLISHED": "0",
        "CONSUMED": "0",
        "DEAD": "0",
        "OLDEST DUE": "-",
        "LAG": "0",
        "RELAYS": "1",
        "CONSUMERS": "1",
        "NOTES": "",
    }


def test_status_counts_rows_and_says_how_old_the_oldest_due_is(alias: str) -> None:
    for name, count in (("pending", 3), ("published", 2), ("consumed", 4), ("dead", 1)):
        factories.rows(alias, count, status=name)
    oldest = factories.row(alias)
    factories.change(alias, oldest, created_at=factories.database_now(alias) - timedelta(hours=2, minutes=5, seconds=9))
    cells = status()
    assert [cells[title] for title in ("PENDING", "PUBLISHED", "CONSUMED", "DEAD")] == ["4", "2", "4", "1"]
    assert cells["OLDEST DUE"] in {"0s", "1s", "2h 5m"}
    factories.change(alias, oldest, next_retry_at=factories.database_now(alias) - timedelta(hours=2))
    assert status()["OLDEST DUE"] == "2h 5m"


def test_status_shows_workers_with_their_shards_and_switches(alias: str) -> None:
    working(alias, "relay", 8, number=1)
    working(alias, "relay", 8, number=2)
    working(alias, "consumer", 0, number=3)
    ServiceSwitch.objects.using(alias).create(service="agent", relay_paused=True, consumer_paused=True)
    cells = status()
    assert (cells["RELAYS"], cells["CONSUMERS"]) == ("2 (8+8)", "1")
    assert cells["NOTES"] == "relay paused, consumer paused"


def test_status_names_what_needs_a_person(alias: str, at_work: None) -> None:
    factories.rows(alias, 2, status="dead")
    factories.row(alias, event_type=FOREIGN)
    reject(alias)
    assert status()["NOTES"] == "2 dead to look at, 1 rejected, 1 foreign rows: rehome them"


def test_status_survives_a_broker_that_is_away_and_asks_it_once(
    alias: str, use_broker: Callable[[Broker], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    broker.go_away()
    asked = []
    whole = broker.positions
    monkeypatch.setattr(broker, "positions", lambda route: (asked.append(route), whole(route))[1])
    use_broker(broker)
    *_, last = run("outbox_status").splitlines()
    assert last == "broker unavailable, lag unknown: the memory broker is away"
    assert status()["LAG"] == "?"
    assert len(asked) == 2
    for service in json.loads(run("outbox_status", "--json"))["services"]:
        assert service["lag"] is None
        assert service["lag_problem"] == "the memory broker is away"


def test_status_shows_the_lag_of_the_consumer_group(alias: str, use_broker: Callable[[Broker], None]) -> None:
    broker = MemoryBroker()
    for _ in range(1200):
        broker.put("smartflow.agent.outbox", value=b"x")
    use_broker(broker)
    assert status()["LAG"] == "1,200"
    assert as_json()["lag"] == 1200


# --- outbox_status: for programs ---------------------------------------------------------------------------------


def test_json_keys_are_stable_and_documented(alias: str) -> None:
    working(alias, "relay", SHARD_COUNT, number=1)
    service = as_json()
    assert list(service) == [
        "service",
        "table",
        "topic",
        "group",
        "database",
        "database_problem",
        "lag",
        "lag_problem",
        "attention",
        "events",
        "counts",
        "open_dead",
        "dismissed",
        "open_rejected",
        "other_installations",
        "foreign",
        "ahead_of_time",
        "oldest_due_age_seconds",
        "relays",
        "consumers",
        "relay_paused",
        "consumer_paused",
    ]
    assert service["counts"]["pending"] == {"value": 0, "capped": False}
    assert set(service["counts"]) == {"pending", "published", "consumed", "dead"}
    (relay,) = service["relays"]
    assert set(relay) == {"worker_id", "host", "pid", "started_at", "shards", "moved_seconds_ago", "is_hung"}
    assert relay["shards"] == SHARD_COUNT
    assert {"type": "agent.state.snapshot.persist", "version": "v1"} in service["events"]
    documented = (CHECKOUT / "docs" / "configuration.md").read_text()
    for key in (*service, *relay, *service["counts"], "generated_at", "capped", "value"):
        assert f"`{key}`" in documented, f"{key} is not documented"


def test_check_is_content_with_work_that_flows(alias: str, at_work: None) -> None:
    factories.rows(alias, 3)
    factories.rows(alias, 3, status="published", due_in=5 * MINUTE)
    factories.rows(alias, 3, status="consumed")
    factories.row(alias, due_in=timedelta(hours=1), retry_count=1)
    factories.repository().wait([factories.row(alias)], until=factories.database_now(alias) + timedelta(hours=1))
    run("outbox_status", "--check")
    assert attention() == []


def _let_a_key_be_parked(alias: str) -> None:
    factories.repository().bury(factories.row(alias), failure=FAILURE, parks_key=True)


def _let_hang(alias: str) -> None:
    workers = Worker.objects.using(alias).filter(service="agent", role="relay")
    workers.update(moved_at=from_now(-timedelta(minutes=5)))


CALLS: dict[str, Callable[[str], object]] = {
    "dead": lambda alias: factories.row(alias, status="dead"),
    "dead, parked": _let_a_key_be_parked,
    "rejected": reject,
    "rejected, other installation": lambda alias: reject(alias, installation="of-staging"),
    "foreign": lambda alias: factories.row(alias, event_type=FOREIGN, due_in=-60 * MINUTE),
    "time zone": lambda alias: factories.row(alias, due_in=timedelta(hours=8)),
    "stalled": lambda alias: factories.row(alias, due_in=-6 * MINUTE),
    "no relay": lambda alias: Worker.objects.using(alias).filter(service="agent", role="relay").delete(),
    "no consumer": lambda alias: Worker.objects.using(alias).filter(service="agent", role="consumer").delete(),
    "hung": _let_hang,
}


@pytest.mark.parametrize("needs", CALLS)
def test_check_exits_with_two_when_a_person_is_needed(alias: str, at_work: None, needs: str) -> None:
    CALLS[needs](alias)
    assert attention() == needs.split(", ")
    with pytest.raises(CommandError, match=rf"agent: {needs}\)") as raised:
        run("outbox_status", "--check")
    assert raised.value.returncode == 2
    run("outbox_status", "task", "--check")


def test_check_exits_with_two_when_the_broker_is_away(
    alias: str, at_work: None, use_broker: Callable[[Broker], None]
) -> None:
    broker = MemoryBroker()
    broker.go_away()
    use_broker(broker)
    with pytest.raises(CommandError, match=r"agent: broker;") as raised:
        run("outbox_status", "--check")
    assert raised.value.returncode == 2


def test_dead_event_that_was_given_up_needs_nobody(alias: str, at_work: None) -> None:
    dead = factories.row(alias, status="dead")
    factories.repository().give_up([dead], by="me", reason="known")
    assert attention() == []


def test_dead_are_those_that_nobody_gave_up(alias: str, at_work: None) -> None:
    dead = factories.rows(alias, 5, status="dead")
    factories.repository().give_up(dead[:2], by="me", reason="known")
    cells, shown = status(), as_json()
    assert (cells["DEAD"], cells["NOTES"]) == ("3", "3 dead to look at")
    assert shown["counts"]["dead"] == shown["open_dead"] == {"value": 3, "capped": False}
    assert shown["dismissed"] == {"value": 2, "capped": False}


def test_work_is_stalled_after_the_time_that_was_given(alias: str, at_work: None) -> None:
    factories.row(alias, due_in=-6 * MINUTE)
    assert attention("--stalled-after", "5m") == ["stalled"]
    assert attention("--stalled-after", "7m") == []


def test_sent_again_and_not_consumed_is_stalled_however_late_it_is_due(alias: str, at_work: None) -> None:
    """What is sent again and again waits longer each time, and must not look like what was sent a moment ago."""
    sent_at = factories.database_now(alias) - 6 * MINUTE
    for due_in in (54 * MINUTE, 4 * MINUTE):
        row_id = factories.row(alias, status="published", published_at=sent_at, due_in=due_in)
        assert attention("--stalled-after", "5m") == ["stalled"]
        assert attention("--stalled-after", "7m") == []
        factories.change(alias, row_id, status="consumed")


def test_what_other_software_sent_just_now_is_not_stalled(alias: str, at_work: None) -> None:
    """Its relay leaves the due time as it was."""
    now = factories.database_now(alias)
    row_id = factories.row(alias, status="published", due_in=-10 * MINUTE, published_at=now)
    assert attention("--stalled-after", "5m") == []
    factories.change(alias, row_id, published_at=now - 6 * MINUTE)
    assert attention("--stalled-after", "5m") == ["stalled"]


def test_sent_and_not_consumed_for_long_is_stalled(alias: str, configure: Configure, at_work: None) -> None:
    """A published row is due again when it is to be redelivered, here after ten minutes."""
    configure(RELAY={"REDELIVER_AFTER_SECONDS": 600})
    sent_six_minutes_ago = 10 * MINUTE - 6 * MINUTE
    factories.row(alias, status="published", due_in=sent_six_minutes_ago)
    assert attention("--stalled-after", "5m") == ["stalled"]
    assert attention("--stalled-after", "7m") == []


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agnet"], "known services: active-scheduler, agent"),
        (["--watch", "0"], "is not a whole number from 1 to"),
        (["--watch", "2", "--check"], "not allowed with argument"),
        (["--stalled-after", "5"], "is not a length of time"),
    ],
)
def test_wrong_arguments_are_explained(alias: str, arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        run("outbox_status", *arguments)


def test_wrong_broker_is_an_error_without_a_traceback(alias: str, configure: Configure) -> None:
    configure(BROKER={"BACKEND": "memory", "OPTIONS": {"colour": "red"}})
    for command in ("outbox_status", "outbox_topics"):
        with pytest.raises(CommandError, match="colour"):
            run(command)


@on_sqlite
def test_database_that_is_away_is_said_without_a_traceback(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("gone away\nfor long")

    monkeypatch.setattr(status_report, "service_status", away)
    assert as_json_of_what_failed("outbox_status", "agent", "--json")["database_problem"] == "gone away for long"
    with pytest.raises(CommandError, match="database unavailable: default: gone away") as raised:
        run("outbox_status")
    assert raised.value.returncode == 1
    with pytest.raises(CommandError, match="agent: database;") as raised:
        run("outbox_status", "--check")
    assert raised.value.returncode == 2


@on_sqlite
def test_nothing_is_waited_for_beyond_the_timeout(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(status_report, "service_status", lambda *_, **__: may_end.wait(60))
    monkeypatch.setattr(status_report, "read_lags", lambda _routes: may_end.wait(60))
    began = time.monotonic()
    with pytest.raises(CommandError, match=r"agent: database, broker;"):
        run("outbox_status", "--check", "--timeout", "1s")
    assert time.monotonic() - began < 2
    may_end.set()


# --- outbox_status --watch ---------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("terminal", [True, False])
def test_watching_draws_anew_on_a_terminal(alias: str, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    stop = StopFlag()
    monkeypatch.setattr(outbox_status, "stop_on_signals", lambda: nullcontext(stop))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    draws = itertools.count(1)

    class Screen(StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            if "agent" in text and next(draws) == 2:
                stop.set()
            return super().write(text)

    screen = Screen()
    call_command("outbox_status", "agent", "--watch", "1", "--timeout", "30s", stdout=screen)
    shown = screen.getvalue()
    assert shown.count("SERVICE") == 2
    assert shown.count("\x1b[2J\x1b[H20") == (2 if terminal else 0), "the time comes first"
    assert ("\x1b" in shown) == terminal


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a project of its own with a migrated database, for processes."""
    folder = tmp_path_factory.mktemp("project")
    made = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartflow.settings",
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
        "DEBUG": "true",
        "READ_DOT_ENV": "false",
        "PYTHONUNBUFFERED": "1",
    }
    subprocess.run(manage("migrate", "--verbosity", "0"), cwd=CHECKOUT, env=made, check=True, capture_output=True)
    return made


def manage(*arguments: str) -> list[str]:
    return [sys.executable, "manage.py", *arguments, "--skip-checks"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watching_ends_well_when_asked(environment: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    shown = tmp_path / "out"
    with shown.open("w") as out:
        process = subprocess.Popen(
            manage("outbox_status", "agent", "--watch", "1", "--json"), cwd=CHECKOUT, env=environment, stdout=out
        )
        try:
            wait_until(lambda: shown.read_text().count("\n") >= 2, timeout=30, message="two draws")
            process.send_signal(number)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
    for line in shown.read_text().splitlines():
        assert json.loads(line)["services"][0]["service"] == "agent"


@pytest.mark.parametrize(("arguments", "is_colored"), [((), True), (("--no-color",), False)])
def test_terminal_gets_colours_unless_they_are_switched_off(
    environment: dict[str, str], arguments: tuple[str, ...], *, is_colored: bool
) -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            manage("outbox_status", "agent", *arguments),
            cwd=CHECKOUT,
            env={**environment, "TERM": "xterm", "COLUMNS": "120"},
            stdout=theirs,
            check=True,
        )
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "no relay runs" in shown
    assert bool(re.search(r"\x1b\[1;31m0 *\x1b\[0m", shown)) is is_colored, "there is no relay"
    assert bool(re.search(r"\x1b\[[\d;]*m", shown)) is is_colored


def test_exit_codes_are_those_of_the_help(environment: dict[str, str]) -> None:
    def code(*arguments: str) -> int:
        return subprocess.run(
            manage(*arguments), cwd=CHECKOUT, env=environment, capture_output=True, check=False
        ).returncode

    assert code("outbox_status") == 0
    assert code("outbox_status", "--check") == 2, "no worker runs"
    assert code("outbox_status", "agnet") == 1
    assert code("outbox_topics") == 0
    assert code("outbox_prune", "--dry-run") == 0


@pytest.mark.parametrize("command", ["outbox_status", "outbox_topics", "outbox_prune", "run_relay", "consume"])
def test_help_says_the_exit_codes(environment: dict[str, str], command: str) -> None:
    done = subprocess.run(
        manage(command, "--help"), cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    assert re.search(r"Exit\s+code:\s+0", done.stdout)


def test_checks_before_a_command_ask_no_database() -> None:
    """Since Django 6.1 they would ask all of them: a worker that is started in an outage would not wait for its end."""
    ours = {
        name: app for name, app in get_commands().items() if str(app).partition(".")[0] in {"outbox", "agent_events"}
    }
    assert len(ours) >= 9
    for name, app in ours.items():
        command = load_command_class(str(app), name)
        assert isinstance(command, OutboxCommand), name
        assert command.get_check_kwargs({})["databases"] == [], name


# --- outbox_topics -----------------------------------------------------------------------------------------------


@on_sqlite
def test_missing_topics_are_an_error_until_they_are_created(alias: str, use_broker: Callable[[Broker], None]) -> None:
    use_broker(MemoryBroker(creates_topics=False))
    with pytest.raises(CommandError, match=r"2 of 2 topics are not ready: .*agent.outbox.*--create") as raised:
        run("outbox_topics", "agent", "task")
    assert raised.value.returncode == 1
    said = run("outbox_topics", "agent", "--create", "--partitions", "4")
    assert re.split(" {2,}", said.splitlines()[1]) == ["agent", "smartflow.agent.outbox", "4", "ready"]
    run("outbox_topics", "agent")
    with pytest.raises(CommandError, match="1 of 2 topics"):
        run("outbox_topics", "agent", "task")


@on_sqlite
def test_partitions_without_create_are_refused(alias: str, use_broker: Callable[[Broker], None]) -> None:
    use_broker(MemoryBroker())
    with pytest.raises(CommandError, match="add --create"):
        run("outbox_topics", "--partitions", "3")


@on_sqlite
def test_topics_of_a_broker_that_is_away_are_an_error(alias: str, use_broker: Callable[[Broker], None]) -> None:
    broker = MemoryBroker()
    broker.go_away()
    use_broker(broker)
    with pytest.raises(CommandError, match="the memory broker is away"):
        run("outbox_topics")


@on_sqlite
def test_topics_are_created_in_kafka(alias: str, configure: Configure) -> None:
    servers = require("kafka")
    configure(
        NAMESPACE=f"commands-{secrets.token_hex(4)}",
        BROKER={"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": servers}},
    )
    with pytest.raises(CommandError, match="1 of 1 topics are not ready"):
        run("outbox_topics", "agent")
    said = run("outbox_topics", "agent", "--create", "--partitions", "3", "--replication", "1")
    assert re.split(" {2,}", said.splitlines()[1])[2:] == ["3", "ready"]
    assert run("outbox_topics", "agent") == said
    assert status()["LAG"] == "0"
