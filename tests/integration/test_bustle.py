"""What is promised holds while publishers and workers, people and pruning are at work at once.

Two bustles: publishers, relays and consumers alone, where nothing dies; and with workers that come and go, events that
die, people who decide on them and pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from agent_events.agent.models import AgentOutboxMessage
from outbox.admin import operations
from outbox.admin.operations import NotDoneError
from outbox.lifecycle import Status
from outbox.models import RejectedRecord
from outbox.operations.pruning import Pruning
from outbox.relay.loop import Relay
from outbox.wire.envelope import decode_message, encode_envelope
from tests import factories
from tests.integration.bustle import Bustle
from tests.toys import SERVICE, ToyEffect, effects

# --- publishers, relays and consumers --------------------------------------------------------------------------------


class WithoutPeople(Bustle):
    """Nothing dies, so that nobody has to decide."""

    keys = tuple("abcd")
    publishers = 3
    transactions = 25


@pytest.mark.parametrize("seed", range(2))
def test_promises_hold_while_publishers_and_workers_run_at_once(alias: str, seed: int) -> None:
    bustle = WithoutPeople(alias, seed)

    bustle.run([bustle.relay, bustle.relay, bustle.consumer, bustle.consumer])

    assert bustle.threads.errors == []
    made = [effect.outbox_id for effect in ToyEffect.objects.using(alias).order_by("id")]
    assert sorted(made) == sorted(bustle.committed_at), "each has one effect, and what was rolled back has none"
    for row in AgentOutboxMessage.objects.using(alias):
        assert row.retry_count == bustle.events[row.id].failures, "waiting and contention cost nothing"
    bustle.check_order()


# --- everybody -------------------------------------------------------------------------------------------------------


class WithPeople(Bustle):
    """Relays and consumers that come and go too, people and pruning."""

    keys = tuple("abcdef")
    publishers = 2
    transactions = 18
    deaths: Mapping[str, int] = {"": 82, "mend": 8, "edit": 5, "give up": 5}

    def __init__(self, alias: str, seed: int) -> None:
        super().__init__(alias, seed)
        self.replayed: list[int] = []
        self.given_up: list[int] = []
        self.deleted: list[int] = []

    @property
    def everybody(self) -> list[Callable[[], None]]:
        return [
            self.relay,
            self.relays_that_come_and_go,
            self.consumer,
            self.consumers_that_come_and_go,
            self.pruner,
            self.person,
            self.person,
        ]

    def new_relay(self, **options: Any) -> Relay:
        return super().new_relay(max_poll_interval_ms=10, redeliver_after_seconds=0.2, **options)

    # --- who else is there -----------------------------------------------------------------------------------------

    def relays_that_come_and_go(self) -> None:
        while not self.stop.is_set:
            self.new_relay().run(self.stop, once=True)
            self.stop.wait(timedelta(milliseconds=20))

    def consumers_that_come_and_go(self) -> None:
        while not self.stop.is_set:
            self.new_consumer().run(self.stop, max_events=15)

    def pruner(self) -> None:
        pruning = Pruning(factories.repository(), 20, self.stop, lambda _deleted: None)
        while not self.stop.wait(timedelta(milliseconds=5)):
            self.deleted.append(pruning.consumed(older_than=timedelta(0)))

    def person(self) -> None:
        """Decide on everything that is dead, as fast as another person who does the same."""
        request: Any = SimpleNamespace(user=SimpleNamespace(pk=1, get_username=lambda: "ann"))
        while not self.stop.wait(timedelta(milliseconds=5)):
            for row in list(self.open_rows().filter(status=Status.DEAD).order_by("-id")):
                try:
                    self.decide(request, row)
                except NotDoneError:
                    continue  # the admin says so, and the person tries again

    def decide(self, request: Any, row: AgentOutboxMessage) -> None:
        event = self.events[row.pk]
        if event.dies == "give up":
            self.given_up += [row.pk] * operations.give_up(request, SERVICE, [row.pk], reason="not needed")
        elif event.dies == "edit":
            mended = encode_envelope(factories.envelope(event.event_type, key=event.key))
            edited = operations.edit(
                request, SERVICE, row.pk, payload=mended, unchanged_since=row.updated_at, then_replay=True
            )
            self.replayed += [row.pk] * edited
        else:
            self.toys.mend(row.pk)
            self.replayed += [row.pk] * operations.replay(request, SERVICE, [row.pk])

    # --- what was promised ---------------------------------------------------------------------------------------

    def check_each_event_is_handled_once(self) -> None:
        made = {effect.outbox_id: effect.attempt - 1 for effect in effects(self.alias)}
        expected = {event.id: event.failures for event in self.events.values() if event.dies != "give up"}
        assert made == expected, "one effect, and nothing but its own errors cost an attempt since the last replay"
        assert ToyEffect.objects.using(self.alias).count() == len(expected)

    def check_what_is_left(self) -> None:
        left = {row.id: row for row in AgentOutboxMessage.objects.using(self.alias)}
        assert set(left) <= set(self.events)
        assert len(left) == len(self.events) - sum(self.deleted)
        hopeless = {event.id for event in self.events.values() if event.dies == "give up"}
        assert {row_id for row_id, row in left.items() if row.status == Status.DEAD} == hopeless
        assert all(row.status == Status.CONSUMED for row_id, row in left.items() if row_id not in hopeless)
        assert sorted(self.given_up) == sorted(hopeless)
        assert set(self.replayed) == {event.id for event in self.events.values() if event.dies in {"mend", "edit"}}
        for row_id in hopeless:
            assert (left[row_id].resolved_by, left[row_id].last_error) == ("ann", "Discard: not like this")

    def check_rejected_records_are_those_of_rows_that_were_pruned(self) -> None:
        left = set(factories.statuses(self.alias))
        for rejected in RejectedRecord.objects.using(self.alias):
            row_id = decode_message(bytes(rejected.value)).outbox_id
            assert row_id in self.events
            assert row_id not in left or self.events[row_id].dies != "give up"
            assert "pruned" in rejected.reason


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
@pytest.mark.parametrize("seed", range(2))
def test_each_event_is_handled_once_while_everybody_is_at_work(
    alias: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_log", lambda *_: None)  # the journal is in another database
    bustle = WithPeople(alias, seed)

    bustle.run(bustle.everybody)

    bustle.check_each_event_is_handled_once()
    bustle.check_what_is_left()
    bustle.check_rejected_records_are_those_of_rows_that_were_pruned()
    bustle.check_order()
