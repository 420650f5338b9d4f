"""A late handler's connections are ended, its locks are free, and the next transaction begins afresh."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import Error, connections, transaction

from outbox.consumer.backstop import BACKSTOP_SIGNAL
from outbox.consumer.watchdog import HUNG_EXIT_CODE, Watchdog
from outbox.exceptions import HandlerTimeoutError
from tests.services import CHECKOUT
from tests.threads import Threads
from tests.toys import ToyEffect
from tests.transactions import held_elsewhere

LIMIT_S = 0.2
LONG_S = 120.0
SOON_S = 20.0
"""Much earlier than what a handler waits for in these tests."""

SERVERS = ("mariadb", "mysql", "postgres")
on_servers = pytest.mark.parametrize("database_alias", SERVERS, indirect=True)

LONG_STATEMENTS = {
    "mysql": "SELECT SLEEP(120)",
    "postgresql": "SELECT pg_sleep(120)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
}


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(grace=timedelta(seconds=60), tick=timedelta(milliseconds=10))
    yield watchdog
    watchdog.close()


def is_late(watchdog: Watchdog, alias: str, handler: Callable[[], object], *, limit_s: float = LIMIT_S) -> bool:
    """Say whether ``handler`` was late; it must have been stopped soon."""
    began = time.monotonic()
    try:
        watchdog.call(lambda _: handler(), None, limit_s=limit_s, using=alias, name="order.placed")
    except HandlerTimeoutError:
        assert time.monotonic() - began < SOON_S
        return True
    return False


def loop() -> None:
    end = time.monotonic() + LONG_S
    while time.monotonic() < end:
        pass


def execute(alias: str, sql: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        cursor.fetchall()


def write(alias: str, number: int = 1) -> ToyEffect:
    return ToyEffect.objects.using(alias).create(
        outbox_id=number, event_type="order.placed", message_key="k", number=number, attempt=1
    )


def written(alias: str) -> list[int]:
    return sorted(ToyEffect.objects.using(alias).values_list("number", flat=True))


def lock_row(alias: str, number: int) -> ToyEffect:
    return ToyEffect.objects.using(alias).select_for_update().get(number=number)


def check_fresh(alias: str) -> None:
    """See that nothing is left of the transactions before, and that one can be made."""
    database = connections[alias]
    assert not database.in_atomic_block
    assert (database.atomic_blocks, database.savepoint_ids) == ([], [])
    before = written(alias)
    with transaction.atomic(using=alias), transaction.atomic(using=alias):
        write(alias, 1_000 + len(before))
    assert written(alias) == [*before, 1_000 + len(before)]
    assert database.get_autocommit()


def test_what_a_late_handler_wrote_is_rolled_back_and_the_next_transaction_commits(
    watchdog: Watchdog, alias: str
) -> None:
    def handler() -> None:
        write(alias, 2)
        loop()

    @transaction.atomic(using=alias)
    def batch() -> None:
        write(alias)
        with transaction.atomic(using=alias):
            watchdog.call(lambda _: handler(), None, limit_s=LIMIT_S, using=alias, name="order.placed")

    with pytest.raises(HandlerTimeoutError):
        batch()

    assert connections[alias].connection is None
    assert written(alias) == []
    check_fresh(alias)


def test_the_transaction_around_cannot_go_on_where_the_error_is_swallowed(watchdog: Watchdog, alias: str) -> None:
    with transaction.atomic(using=alias):
        write(alias)
        assert is_late(watchdog, alias, loop)
        assert connections[alias].closed_in_transaction
        assert connections[alias].needs_rollback
        with pytest.raises(Error):
            write(alias, 2)

    assert written(alias) == []
    check_fresh(alias)


def test_a_late_handler_outside_of_a_transaction(watchdog: Watchdog, alias: str) -> None:
    def handler() -> None:
        write(alias, 1)
        with transaction.atomic(using=alias):
            write(alias, 2)
            loop()

    assert is_late(watchdog, alias, handler)

    assert written(alias) == [1]
    check_fresh(alias)


def test_a_statement_that_takes_for_ever_is_ended(watchdog: Watchdog, alias: str) -> None:
    with suppress(HandlerTimeoutError), transaction.atomic(using=alias):
        write(alias)
        assert is_late(watchdog, alias, lambda: execute(alias, LONG_STATEMENTS[connections[alias].vendor]))

    assert written(alias) == []
    check_fresh(alias)


@on_servers
def test_a_wait_for_a_lock_is_ended(watchdog: Watchdog, alias: str) -> None:
    write(alias)

    with held_elsewhere(alias, lambda: lock_row(alias, 1)), transaction.atomic(using=alias):
        assert is_late(watchdog, alias, lambda: lock_row(alias, 1))

    check_fresh(alias)


@on_servers
def test_the_locks_of_a_handler_that_does_not_end_yet_are_free(watchdog: Watchdog, alias: str) -> None:
    write(alias)
    holds, got_it = threading.Event(), threading.Event()

    def handler() -> None:
        lock_row(alias, 1)
        holds.set()
        while not got_it.is_set():
            with suppress(BaseException):
                got_it.wait(SOON_S)

    def take_the_lock() -> None:
        assert holds.wait(SOON_S)
        with transaction.atomic(using=alias):
            lock_row(alias, 1)
        got_it.set()

    threads = Threads()
    threads.start(take_the_lock)
    with transaction.atomic(using=alias):
        assert is_late(watchdog, alias, handler)

    threads.check_no_errors()
    check_fresh(alias)


@on_servers
def test_a_handler_that_hangs_in_another_database_is_ended(watchdog: Watchdog, alias: str) -> None:
    def handler() -> None:
        with transaction.atomic(using="default"):
            execute("default", LONG_STATEMENTS["sqlite"])

    with transaction.atomic(using=alias):
        write(alias)
        assert is_late(watchdog, alias, handler)

    assert written(alias) == []
    check_fresh(alias)
    check_fresh("default")
    ToyEffect.objects.using("default").all().delete()


def test_a_handler_that_closed_its_connection_itself(watchdog: Watchdog, alias: str) -> None:
    def handler() -> None:
        connections[alias].close()
        loop()

    with transaction.atomic(using=alias):
        write(alias)
        assert is_late(watchdog, alias, handler)

    assert written(alias) == []
    check_fresh(alias)


# psycopg's callback for the server's last words loses the one that is raised in it; it comes once more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_in_the_middle_of_atomic_blocks_leaves_them_in_order(watchdog: Watchdog, alias: str) -> None:
    """It comes anywhere in Django's code; at another place each time."""

    def in_and_out() -> None:
        end = time.monotonic() + LONG_S
        while time.monotonic() < end:
            with transaction.atomic(using=alias), transaction.atomic(using=alias):
                pass
            with suppress(LookupError), transaction.atomic(using=alias):
                raise LookupError

    for number in range(40):
        with suppress(HandlerTimeoutError):
            if number % 2:
                with transaction.atomic(using=alias), transaction.atomic(using=alias):
                    assert is_late(watchdog, alias, in_and_out, limit_s=0.005)
            else:
                assert is_late(watchdog, alias, in_and_out, limit_s=0.005)
        check_fresh(alias)


def test_calls_in_time_leave_the_connection_alone(watchdog: Watchdog, alias: str) -> None:
    with transaction.atomic(using=alias):
        connection = connections[alias].connection
        for number in range(3):
            assert not is_late(watchdog, alias, lambda: write(alias, number), limit_s=LONG_S)  # noqa: B023
        assert connections[alias].connection is connection

    assert written(alias) == [0, 1, 2]


@on_servers
def test_a_database_that_does_not_answer_does_not_hold_up_the_interruption(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections[alias].ensure_connection()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watchdog = Watchdog(grace=timedelta(seconds=1), tick=timedelta(milliseconds=10), end_process=lambda _: None)
        try:
            settings: dict[str, Any] = connections[alias].settings_dict
            with monkeypatch.context() as patch:
                patch.setitem(settings, "HOST", "127.0.0.1")
                patch.setitem(settings, "PORT", silent.getsockname()[1])
                with transaction.atomic(using=alias):
                    assert is_late(watchdog, alias, loop)
        finally:
            watchdog.close()

    check_fresh(alias)


def run_hanging(way: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.hanging", way],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("way", ["receive", "lock", "swallow"])
def test_a_handler_that_never_returns_is_written_down_and_ends_its_process(way: str) -> None:
    process = run_hanging(way)

    assert (process.returncode, process.stdout) == (HUNG_EXIT_CODE, "written down\n"), process.stderr
    assert "handler does not return, ending the process: order.placed" in process.stderr
    assert f"in {way}" in process.stderr


def test_a_handler_that_keeps_the_interpreters_lock_has_its_process_ended_and_said_where() -> None:
    process = run_hanging("match")

    assert (process.returncode, process.stdout) == (-BACKSTOP_SIGNAL, ""), process.stderr
    assert "in match" in process.stderr
