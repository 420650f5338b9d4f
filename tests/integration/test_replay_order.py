"""Order per key holds when many dead events are replayed in rounds, through a real relay and a real consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from outbox import Discard
from outbox.admin import dead
from outbox.brokers.memory import MemoryBroker
from tests import factories
from tests.integration.admin_rows import DEAD, MESSAGES, said
from tests.relays import MakeRelay, step_until_idle
from tests.toys import Toys, effect_ids

KEYS = ("red", "green", "blue")
ROUND = 5
"""So many events one round takes; a key has more than a round takes of it."""

Work = Callable[[], None]


@pytest.fixture
def operator(alias: str) -> Iterator[Client]:
    """Sign in somebody who may do everything."""
    user = User.objects.create_superuser("replays")
    client = Client()
    client.force_login(user)
    yield client
    Session.objects.all().delete()
    user.delete()


@pytest.fixture
def work(alias: str, broker: MemoryBroker, toys: Toys, make_relay: MakeRelay) -> Work:
    """Return a function that lets a relay and a consumer work until nothing is left to do."""
    relay = make_relay()
    consumer = factories.consumer(alias, toys, broker=broker)

    def until_idle() -> None:
        for _ in range(100):
            factories.make_due(alias)  # what was deferred behind another of its key
            step_until_idle(relay)
            while consumer.step(10):
                pass
            if not {"pending", "published"} & factories.status_counts(alias).keys():
                return
        raise AssertionError(f"not done: {factories.statuses(alias)}")

    return until_idle


@pytest.fixture
def died(alias: str, toys: Toys, work: Work) -> dict[str, list[int]]:
    """Return the events of each key, in their order; all have died at their handlers, and would succeed now."""
    ids = factories.rows(alias, 4 * len(KEYS), key=lambda number: KEYS[number % len(KEYS)])
    for row_id in ids:
        toys.fail(row_id, Discard("the deployment is broken"))
    work()
    assert factories.status_counts(alias) == {"dead": len(ids)}
    for row_id in ids:
        toys.mend(row_id)
    return {key: ids[place :: len(KEYS)] for place, key in enumerate(KEYS)}


def replay_all(operator: Client, url: str = DEAD) -> bool:
    """Replay one round of all that match; say whether there was anything."""
    question = operator.post(url, {"action": "replay", "all": "1"})
    if question.status_code == 302:
        return False
    form = {"action": "replay", "selected": question.context["selection"], "confirmed": "1"}
    assert "replayed" in said(operator.post(url, form, follow=True))[0]
    return True


def test_rounds_of_all_that_match_keep_the_order_of_each_key(
    alias: str, operator: Client, died: dict[str, list[int]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "AT_ONCE", ROUND)
    rounds = 0
    while replay_all(operator):
        rounds += 1
        work()  # whatever this round sent takes effect before the next one
    assert rounds == 3
    assert factories.status_counts(alias) == {"consumed": 12}
    for key, ids in died.items():
        assert effect_ids(alias, key=key) == ids


def test_rounds_keep_the_order_of_keys_that_died_the_other_way_round(
    alias: str, operator: Client, died: dict[str, list[int]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older event was replayed once and died again, after the later ones of its key."""
    monkeypatch.setattr(dead, "AT_ONCE", ROUND)
    died_at = factories.database_now(alias)
    for ids in died.values():
        for place, row_id in enumerate(ids):
            factories.change(alias, row_id, next_retry_at=died_at - factories.HEARTBEAT * place)
    while replay_all(operator):
        work()
    for key, ids in died.items():
        assert effect_ids(alias, key=key) == ids


def test_round_passes_over_given_up_events_of_a_key(
    alias: str, operator: Client, died: dict[str, list[int]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "AT_ONCE", ROUND)
    monkeypatch.setattr("outbox.admin.filters.WINDOW", 1)
    given_up = [ids[0] for ids in died.values()]
    factories.change(alias, given_up, resolved_at=factories.database_now(alias), resolved_by="anna")
    while replay_all(operator):
        work()
    for key, ids in died.items():
        assert effect_ids(alias, key=key) == ids[1:]
    assert factories.status_counts(alias) == {"dead": 3, "consumed": 9}


def test_all_that_match_are_found_behind_many_that_do_not(
    alias: str, operator: Client, died: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.admin.filters.WINDOW", 2)
    *given_up, still_open = (row_id for ids in died.values() for row_id in ids)
    now = factories.database_now(alias)
    factories.change(alias, given_up, resolved_at=now, resolved_by="anna", next_retry_at=now)
    assert replay_all(operator)
    assert factories.get(alias, still_open).status == "pending"
    assert factories.status_counts(alias) == {"pending": 1, "dead": 11}


def test_selection_that_leaves_out_an_older_event_of_a_key_is_asked_about(
    alias: str, operator: Client, died: dict[str, list[int]]
) -> None:
    first, second, third, _ = died["red"]
    selected = [f"agent:{row_id}" for row_id in (second, third, *died["blue"])]
    question = operator.post(DEAD, {"action": "replay", "selected": selected})
    assert question.status_code == 200, "nothing is replayed before the answer"
    assert question.context["overtaken"] == 2
    assert "before an older dead event of the same key" in question.content.decode()
    assert factories.status_counts(alias) == {"dead": 12}

    form = {"action": "replay", "selected": question.context["selection"], "confirmed": "1"}
    assert said(operator.post(DEAD, form, follow=True)) == ["6 were replayed."]
    assert factories.get(alias, first).status == "dead"


def test_filter_that_leaves_out_an_older_event_of_a_key_is_asked_about(
    alias: str, operator: Client, died: dict[str, list[int]]
) -> None:
    factories.change(alias, died["green"][0], error_class="KeyError")
    question = operator.post(f"{DEAD}?error_class=Discard", {"action": "replay", "all": "1"})
    assert question.context["overtaken"] == 3


def test_page_of_an_event_names_the_older_one_that_a_replay_would_overtake(
    alias: str, operator: Client, died: dict[str, list[int]]
) -> None:
    first, second, *_ = died["red"]
    warning = f'<strong>It would take effect before <a href="{MESSAGES}{first}/change/">#{first}</a></strong>'
    assert warning in operator.get(f"{MESSAGES}{second}/change/").content.decode()
    assert "It would take effect before" not in operator.get(f"{MESSAGES}{first}/change/").content.decode()
    factories.change(alias, first, resolved_at=factories.database_now(alias), resolved_by="anna")
    assert "It would take effect before" not in operator.get(f"{MESSAGES}{second}/change/").content.decode()


def test_form_that_edits_and_replays_names_the_older_one_too(alias: str, operator: Client) -> None:
    older, edited = factories.rows(
        alias, 2, event_type="agent.state.snapshot.persist", status="dead", payload=_snapshot()
    )
    page = operator.get(f"{MESSAGES}{edited}/edit/").content.decode()
    assert f'it would take effect before <a href="{MESSAGES}{older}/change/">#{older}</a>' in page


def _snapshot() -> dict[str, Any]:
    return {"conversation_id": "k", "user_id": 7, "phase": "plan", "snapshot_json": "{}"}
