"""Sessions of workers: a stranger's lock holds them up for a second, their own locks do not outlive their silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction

from outbox.relay.confirmations import OtherHands
from outbox.storage import sessions
from outbox.storage.sessions import bound_sessions, close_if_idle, worker_session
from tests.factories import TABLE, row
from tests.threads import together
from tests.transactions import connection_id_of, held_elsewhere
from tests.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
LONG = timedelta(seconds=70)
BRIEF = timedelta(seconds=2)
SERVERS = ("mariadb", "mysql", "postgres")

on_servers = pytest.mark.parametrize("database_alias", SERVERS, indirect=True)

# A worker in a process of its own: locks a row, says so, and does nothing more.
_WORKER = """
import signal, sys
from datetime import timedelta
import django
django.setup()
from django.db import connections, transaction
from outbox.storage.sessions import worker_session

alias, name, row_id, idle_s = sys.argv[1:]
connections[alias].settings_dict["NAME"] = name
with worker_session(alias, idle=timedelta(seconds=float(idle_s))), transaction.atomic(using=alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT id FROM agent_outbox_messages WHERE id = %s FOR UPDATE", [row_id])
    print("locked", flush=True)
    signal.alarm(600)
    signal.pause()
"""


@on_servers
def test_row_that_a_stranger_has_locked_holds_a_worker_up_for_a_second(alias: str) -> None:
    row_id = row(alias)

    with held_elsewhere(alias, lambda: _lock(alias, row_id)), worker_session(alias, idle=LONG):
        assert 0.9 <= _seconds_until_refused(lambda: _lock(alias, row_id)) < 5


@on_servers
def test_table_that_a_stranger_alters_holds_a_worker_up_for_a_second(alias: str) -> None:
    row_id = row(alias)
    alters = {"mysql": f"LOCK TABLES {TABLE} WRITE", "postgresql": f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE"}
    ends = {"mysql": "UNLOCK TABLES", "postgresql": "SELECT 1"}
    vendor = connections[alias].vendor

    with (
        held_elsewhere(alias, lambda: _execute(alias, alters[vendor]), lambda: _execute(alias, ends[vendor])),
        worker_session(alias, idle=LONG),
    ):
        assert 0.9 <= _seconds_until_refused(lambda: _lock(alias, row_id)) < 5


@on_servers
def test_server_frees_the_locks_of_a_worker_that_says_nothing(alias: str) -> None:
    row_id = row(alias)

    def lock_and_say_nothing() -> None:
        with transaction.atomic(using=alias):
            _lock(alias, row_id)
            _wait_until_free(alias, row_id)
            _lock(alias, row_id)

    with worker_session(alias, idle=BRIEF), pytest.raises(DatabaseError):
        lock_and_say_nothing()


@on_servers
def test_server_frees_the_locks_of_a_worker_that_is_frozen(alias: str) -> None:
    row_id = row(alias)
    name = connections[alias].settings_dict["NAME"]
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, alias, name, str(row_id), str(BRIEF.total_seconds())],
        cwd=CHECKOUT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == "locked"
        worker.send_signal(signal.SIGSTOP)
        assert not _is_free(alias, row_id)

        wait_until(lambda: _is_free(alias, row_id), timeout=10)
    finally:
        worker.kill()
        worker.wait()


def test_sessions_of_others_are_as_they_were(alias: str) -> None:
    before = _settings(alias)

    with worker_session(alias, idle=LONG):
        within = _settings(alias)

    assert _settings(alias) == before
    if connections[alias].vendor == "sqlite":
        assert within == before
    else:
        assert [each for each, other in zip(within, before, strict=True) if each == other] == []


@on_servers
def test_other_databases_of_a_worker_are_bounded_but_not_their_idle_time(alias: str) -> None:
    """A handler may use another database rarely: the server must not end that session in between."""
    before = _settings(alias)

    with worker_session("default", idle=LONG):
        connections[alias].close()
        within = _settings(alias)
        connections[alias].close()

    assert within[0] != before[0]
    if connections[alias].vendor == "mysql":
        assert within[-1] == before[-1], "wait_timeout"


def let_time_pass(*, minutes: float) -> None:
    """Have this thread's session be used that long ago."""
    bounds = sessions._thread.bounds
    assert bounds is not None
    bounds.used_at -= 60 * minutes


@on_servers
def test_connection_that_was_idle_for_long_is_closed_before_its_next_use(alias: str) -> None:
    with worker_session(alias, idle=timedelta(minutes=10)):
        first = connection_id_of(alias)
        close_if_idle()
        assert connection_id_of(alias) == first

        let_time_pass(minutes=6)
        close_if_idle()

        assert connections[alias].connection is None
        assert connection_id_of(alias) != first


@on_servers
def test_idle_connection_stays_open_inside_of_a_transaction(alias: str) -> None:
    with worker_session(alias, idle=timedelta(minutes=10)), transaction.atomic(using=alias):
        first = connection_id_of(alias)
        let_time_pass(minutes=6)
        close_if_idle()
        assert connection_id_of(alias) == first


@on_servers
def test_threads_of_a_pool_are_bounded_and_survive_their_idle_time(alias: str) -> None:
    before = _settings(alias)
    seen: list[Any] = []
    hands = OtherHands("marks", threads=1, prepare=lambda: bound_sessions(alias, idle=timedelta(seconds=1)))

    def look() -> None:
        seen.append((_settings(alias), connection_id_of(alias)))

    hands.begin(look)
    hands.finish()
    gone = seen[0][1]
    if connections[alias].vendor == "mysql":
        wait_until(lambda: not _exists(alias, gone), timeout=10, message="the server ends the idle session")
        hands.begin(look)
        hands.finish()
        assert seen[1][1] != gone
    hands.close()

    assert seen[0][0][0] != before[0]


def _seconds_until_refused(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(OperationalError, match=r"[Ll]ock"):
        work()
    return time.monotonic() - began


def _wait_until_free(alias: str, row_id: int) -> None:
    """Wait on a thread and a connection of its own until the row is locked no more."""

    def wait(_: None) -> None:
        assert not _is_free(alias, row_id)
        wait_until(lambda: _is_free(alias, row_id), timeout=10)

    together(wait, [None])


def _is_free(alias: str, row_id: int) -> bool:
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT id FROM {TABLE} WHERE id = %s FOR UPDATE SKIP LOCKED", [row_id])
        return cursor.fetchone() is not None


def _lock(alias: str, row_id: int) -> None:
    with transaction.atomic(using=alias):
        _execute(alias, f"SELECT id FROM {TABLE} WHERE id = {row_id} FOR UPDATE")


def _execute(alias: str, statement: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


def _exists(alias: str, connection_id: int) -> bool:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s", [connection_id])
        return bool(cursor.fetchone()[0])


def _settings(alias: str) -> tuple[Any, ...]:
    statement = {
        "mysql": "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@wait_timeout",
        "postgresql": "SELECT CURRENT_SETTING('lock_timeout'), CURRENT_SETTING('idle_in_transaction_session_timeout')",
        "sqlite": "SELECT 1",
    }[connections[alias].vendor]
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return tuple(cursor.fetchone())
