"""The publishing side as a process of its own, run with the settings of the acceptance tests.

``python -m tests.acceptance.publisher serve`` does what it is told, a line of JSON at a time; ``… load PLAN JOURNAL``
works off a plan, writes down what came of every transaction, and waits out a database that is away.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import msgspec
from django.db import connections, transaction
from django.db.utils import DatabaseError, InterfaceError

from outbox.coordination.shutdown import StopFlag, stop_on_signals
from tests.acceptance.plans import Entry, Outcome, Plan
from tests.acceptance.probe.events import KINDS

_AWAY_PAUSE = timedelta(milliseconds=100)


def main(arguments: Sequence[str]) -> None:
    """Serve, or work off a plan."""
    django.setup()
    if arguments[0] == "serve":
        Server().run()
    else:
        plan = msgspec.json.decode(arguments[1], type=Plan)
        with stop_on_signals() as stop:
            run_load(plan, Path(arguments[2]), stop)


def write_event(kind: str, fields: dict[str, Any]) -> str:
    """Publish one event in the open transaction, with the business row that goes with it; return its event id."""
    from outbox import publish
    from tests.acceptance.probe.models import BusinessRow

    if kind == "snapshot":
        event_id, key = _publish_snapshot(fields), fields["conversation_id"]
    else:
        event_id, key = publish(KINDS[kind](**fields)), fields["key"]
    BusinessRow.objects.create(event_id=event_id, message_key=key)
    return event_id


def _publish_snapshot(fields: dict[str, Any]) -> str:
    from agent_events.agent.events import publish_agent_state_snapshot

    phase, filler = fields.get("phase", "planning"), "x" * fields.get("bytes", 0)
    snapshot = {"runtime_state": {"common_state": {"phase": phase}}, "n": fields.get("n", 0), "filler": filler}
    event_id = publish_agent_state_snapshot(
        snapshot, conversation_id=fields["conversation_id"], user_id=fields.get("user_id", 1)
    )
    if event_id is None:
        raise RuntimeError("the snapshot was not published")
    return event_id


class Server:
    """Publishes what standard input says, in a transaction that may stay open, and answers with event ids."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def run(self) -> None:
        for line in sys.stdin.buffer:
            command = msgspec.json.decode(line)
            answer = getattr(self, f"do_{command.pop('do')}")(**command)
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()

    def do_publish(self, events: list[tuple[str, dict[str, Any]]]) -> list[str]:
        with transaction.atomic():
            return [write_event(kind, fields) for kind, fields in events]

    def do_begin(self) -> None:
        self._open.enter_context(transaction.atomic())

    def do_commit(self) -> None:
        self._open.close()

    def do_rollback(self) -> None:
        transaction.set_rollback(True)
        self._open.close()

    def do_replay(self, service: str, ids: list[int]) -> int:
        from outbox.registry.catalog import repository_of

        with transaction.atomic():
            return repository_of(service).replay(ids)

    def do_give_up(self, service: str, ids: list[int]) -> int:
        from outbox.registry.catalog import repository_of

        with transaction.atomic():
            return repository_of(service).give_up(ids, by="a person", reason="not worth it")


class _RollBack(Exception):  # noqa: N818 - not an error: the plan asks for it
    """Leaves the transaction without committing it."""


class _Thread:
    """One thread of a load."""

    def __init__(self, plan: Plan, number: int, journal: int, stop: StopFlag) -> None:
        self._plan, self._number, self._journal, self._stop = plan, number, journal, stop
        self._random = random.Random(f"{plan.seed}-{plan.prefix}-{number}")
        self._n = 0

    def run(self) -> None:
        done = 0
        try:
            while not self._stop.is_set and (not self._plan.transactions or done < self._plan.transactions):
                if self._transact():
                    done += 1
                    self._stop.wait(timedelta(milliseconds=self._plan.pause_ms))
                else:
                    self._stop.wait(_AWAY_PAUSE)
        finally:
            connections.close_all()

    def _transact(self) -> bool:
        """Make one transaction and note what came of it; say whether the database was there."""
        event_ids: list[str] = []
        is_whole = False
        outcome: Outcome = "committed"
        is_there = True
        try:
            with transaction.atomic():
                for _ in range(self._random.randint(1, self._plan.events)):
                    event_ids.append(self._write())
                is_whole = True
                if self._random.random() < self._plan.rollbacks:
                    raise _RollBack
        except _RollBack:
            outcome = "rolled_back"
        except (DatabaseError, InterfaceError):
            # Before COMMIT was sent nothing can have been committed; whether the COMMIT got through nobody knows.
            outcome = "unknown" if is_whole else "rolled_back"
            is_there = False
            connections.close_all()
        os.write(self._journal, msgspec.json.encode(Entry(outcome=outcome, event_ids=event_ids)) + b"\n")
        return is_there

    def _write(self) -> str:
        self._n += 1
        key = f"{self._plan.prefix}-{self._number}-{self._random.randrange(self._plan.keys)}"
        name = "conversation_id" if self._plan.kind == "snapshot" else "key"
        return write_event(self._plan.kind, {name: key, "n": self._n, **self._plan.fields})


def run_load(plan: Plan, journal: Path, stop: StopFlag) -> None:
    """Run the threads of ``plan`` until they are done or ``stop`` is set."""
    errors: list[BaseException] = []
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def run(number: int) -> None:
        try:
            _Thread(plan, number, descriptor, stop).run()
        except BaseException as error:
            errors.append(error)
            stop.set()
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(plan.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(timeout=0.1)
    os.close(descriptor)
    if errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
