"""What an operator does: replay, edit, give up, pause. Checked in the database, with who did it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone

from outbox.admin import dead
from outbox.models import ServiceSwitch
from tests.integration.admin_rows import (
    DATABASES,
    DEAD,
    MESSAGES,
    REJECTED,
    ROUTES,
    add,
    add_dead,
    add_rejected,
    at,
    journal,
    log_of,
    now_of,
    said,
    snapshot,
    statuses,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db(databases=DATABASES)


# --- replay ------------------------------------------------------------------------------------------------------


def test_replay_brings_a_dead_event_back_with_all_its_attempts(
    root: Client, outbox_alias: str, replayed: list[dict[str, Any]]
) -> None:
    row = add_dead(parks_key=True, resolved_at=at(0), resolved_by="anna", resolution="gone", retry_count=20)
    answer = root.post(f"{MESSAGES}{row.pk}/replay/", follow=True)
    now = now_of(row)
    assert (now.status, now.retry_count, now.parks_key) == ("pending", 0, False)
    assert (now.dead_at, now.resolved_at, now.resolved_by, now.resolution) == (None, None, "", "")
    assert now.next_retry_at is not None
    assert now.next_retry_at <= timezone.now() + timedelta(seconds=5)
    assert said(answer) == ["Replayed: the event is sent again with all its attempts before it."]
    assert journal() == [("root", log_of(row), "Replayed.")]
    assert replayed == [{"service": "agent", "ids": [row.pk], "by": "root"}]


def test_replay_of_selected_tells_how_many_were_dead(
    root: Client, outbox_alias: str, replayed: list[dict[str, Any]]
) -> None:
    rows = [add_dead(), add_dead(), add_dead()]
    other = add_dead("task")
    untouched = add_dead()
    type(rows[0]).objects.using(outbox_alias).filter(pk=rows[1].pk).update(status="consumed")
    selected = [f"agent:{row.pk}" for row in rows] + [f"task:{other.pk}"]
    answer = root.post(f"{DEAD}?service=", {"action": "replay", "selected": selected}, follow=True)
    assert said(answer) == ["3 of 4 were replayed; 1 was not dead any more."]
    assert statuses([*rows, other, untouched]) == ["pending", "consumed", "pending", "pending", "dead"]
    assert [what for _, what, _ in journal()] == [log_of(rows[0]), log_of(rows[2]), f"taskoutboxmessage {other.pk}"]
    assert [told["ids"] for told in replayed] == [[rows[0].pk, rows[2].pk], [other.pk]]


def test_second_click_on_replay_changes_nothing(root: Client, outbox_alias: str) -> None:
    row = add_dead()
    root.post(f"{MESSAGES}{row.pk}/replay/")
    answer = root.post(f"{MESSAGES}{row.pk}/replay/", follow=True)
    assert said(answer)[-1] == "Nothing was changed: somebody else dealt with it meanwhile."
    assert len(journal()) == 1


@pytest.mark.parametrize("action", ["replay", "give-up"])
def test_those_behind_a_parked_key_wait_for_its_end_and_are_released_by_a_person_who_gives_it_up(
    root: Client, outbox_alias: str, action: str
) -> None:
    parked = add_dead(parks_key=True)
    waiting = add(next_retry_at=timezone.now() + timedelta(hours=1))
    page = root.get(f"{MESSAGES}{parked.pk}/change/").content.decode()
    assert "<strong>1</strong> later pending event" in page
    assert "parks its key" in page
    blocked = root.get(f"{MESSAGES}{waiting.pk}/change/").content.decode()
    assert f"{MESSAGES}{parked.pk}/change/" in blocked
    root.post(f"{MESSAGES}{parked.pk}/{action}/", {"reason": "not needed"})
    now = now_of(waiting)
    assert now.status == "pending"
    assert now.next_retry_at is not None
    is_due = now.next_retry_at <= timezone.now() + timedelta(seconds=5)
    assert is_due == (action == "give-up"), "the replayed event is handled first"


def test_nothing_selected_changes_nothing(root: Client) -> None:
    row = add_dead()
    assert said(root.post(DEAD, {"action": "replay"}, follow=True)) == ["No event was selected."]
    assert said(root.post(DEAD, {"selected": f"agent:{row.pk}"}, follow=True))[-1].startswith("Choose what to do")
    assert statuses([row]) == ["dead"]


def test_all_that_match_are_replayed_after_a_question(
    root: Client, outbox_alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "PAGE_SIZE", 2)
    matching = [add_dead(error_class="KeyError") for _ in range(5)] + [add_dead("task", error_class="KeyError")]
    others = [add_dead(), add_dead(error_class="KeyError", resolved_at=at(0))]
    url = f"{DEAD}?error_class=KeyError"
    question = root.post(url, {"action": "replay", "all": "1"})
    assert question.context["title"] == "Replay 6 dead events?"
    assert statuses(matching) == ["dead"] * 6
    late = add_dead(error_class="KeyError")

    form = {"action": "replay", "selected": question.context["selection"], "confirmed": "1"}
    answer = root.post(url, form, follow=True)
    assert said(answer) == ["6 were replayed."]
    assert statuses(matching) == ["pending"] * 6
    assert statuses([*others, late]) == ["dead"] * 3


def test_one_action_takes_a_bounded_number(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "AT_ONCE", 3)
    rows = [add_dead(next_retry_at=at(number)) for number in range(5)]
    assert root.post(DEAD, {"action": "replay", "all": "1"}).context["title"] == "Replay 3 dead events?"
    too_many = [f"agent:{row.pk}" for row in rows]
    answer = root.post(DEAD, {"action": "replay", "selected": too_many}, follow=True)
    assert said(answer) == ["At most 3 events can be taken at once."]
    assert statuses(rows) == ["dead"] * 5


# --- give up -----------------------------------------------------------------------------------------------------


def test_given_up_event_stays_dead_and_leaves_the_open_list(root: Client, outbox_alias: str) -> None:
    row = add_dead(parks_key=True, last_error="no such user")
    waiting = add(next_retry_at=timezone.now() + timedelta(hours=1))
    answer = root.post(f"{MESSAGES}{row.pk}/give-up/", {"reason": " the user is <b>gone</b> "}, follow=True)
    now = now_of(row)
    assert (now.status, now.resolved_by, now.resolution) == ("dead", "root", "the user is <b>gone</b>")
    assert now.resolved_at is not None
    assert now.parks_key is False
    assert "the user is &lt;b&gt;gone&lt;/b&gt;" in answer.content.decode()
    assert "no such user" not in root.get(DEAD).content.decode()
    assert "no such user" in root.get(f"{DEAD}?state=given-up").content.decode()
    assert journal() == [("root", log_of(row), "Given up: the user is <b>gone</b>")]
    due = now_of(waiting).next_retry_at
    assert due is not None
    assert due <= timezone.now() + timedelta(seconds=5)


@pytest.mark.parametrize("reason", ["", "   "])
def test_giving_up_needs_a_reason(root: Client, reason: str) -> None:
    row = add_dead()
    answer = root.post(f"{MESSAGES}{row.pk}/give-up/", {"reason": reason}, follow=True)
    assert said(answer) == ["Say why: a reason is needed to give an event up."]
    form = {"action": "give-up", "selected": f"agent:{row.pk}", "confirmed": "1", "reason": reason}
    assert "Say why" in root.post(DEAD, form).content.decode()
    assert now_of(row).resolved_at is None


def test_selected_are_given_up_after_a_question(root: Client, outbox_alias: str) -> None:
    rows = [add_dead(), add_dead(resolved_at=at(0), resolved_by="anna"), add_dead()]
    question = root.post(DEAD, {"action": "give-up", "selected": [f"agent:{row.pk}" for row in rows]})
    assert question.context["title"] == "Give up 3 dead events?"
    assert now_of(rows[0]).resolved_at is None
    form = {"action": "give-up", "selected": question.context["selection"], "confirmed": "1", "reason": "too old"}
    answer = root.post(DEAD, form, follow=True)
    assert said(answer) == ["2 of 3 were given up; 1 was not open any more."]
    assert [now_of(row).resolved_by for row in rows] == ["root", "anna", "root"]
    assert [what for _, what, _ in journal()] == [log_of(rows[0]), log_of(rows[2])]


@pytest.mark.parametrize("status", ["pending", "published", "consumed"])
def test_only_what_is_dead_is_touched(root: Client, outbox_alias: str, status: str) -> None:
    row = add(status=status)
    before = now_of(row).updated_at
    root.post(f"{MESSAGES}{row.pk}/replay/")
    root.post(f"{MESSAGES}{row.pk}/give-up/", {"reason": "x"})
    assert root.get(f"{MESSAGES}{row.pk}/edit/").status_code == 302
    root.post(f"{MESSAGES}{row.pk}/edit/", {"payload": json.dumps(snapshot()), "token": before.isoformat()})
    assert (now_of(row).status, now_of(row).updated_at, now_of(row).resolved_at) == (status, before, None)
    assert journal() == []
    page = root.get(f"{MESSAGES}{row.pk}/change/").content.decode()
    assert "What to do" not in page


# --- what is in the way ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True, databases=DATABASES)
@pytest.mark.parametrize(
    ("outbox_alias", "impatience"),
    [
        ("mariadb", "SET SESSION innodb_lock_wait_timeout = 1"),
        ("mysql", "SET SESSION innodb_lock_wait_timeout = 1"),
        ("postgres", "SET lock_timeout = '100ms'"),
    ],
    indirect=["outbox_alias"],
)
def test_row_locked_by_a_worker_is_left_alone_and_said(root: Client, outbox_alias: str, impatience: str) -> None:
    row = add_dead()
    payload = json.dumps(snapshot(phase="mended"))
    form = root.get(f"{MESSAGES}{row.pk}/edit/").context["form"]
    selected = {"selected": f"agent:{row.pk}", "confirmed": "1", "reason": "x"}
    posts = [
        (f"{MESSAGES}{row.pk}/replay/", {}),
        (f"{MESSAGES}{row.pk}/give-up/", {"reason": "x"}),
        (f"{MESSAGES}{row.pk}/edit/", {"payload": payload, "token": form.token}),
        (DEAD, {"action": "replay", **selected}),
    ]
    connections[outbox_alias].cursor().execute(impatience)
    worker = connections[outbox_alias].copy()
    try:
        worker.set_autocommit(False)
        worker.cursor().execute(f"SELECT id FROM {row._meta.db_table} WHERE id = {row.pk} FOR UPDATE")
        for url, fields in posts:
            answer = root.post(url, fields, follow=True).content.decode()
            assert "The rows are locked by a worker: nothing was changed. Try again." in answer, url
    finally:
        worker.close()
    now = now_of(row)
    assert (now.status, now.payload, now.resolved_at) == ("dead", row.payload, None)
    assert journal() == []
    root.post(f"{MESSAGES}{row.pk}/replay/")
    assert now_of(row).status == "pending"
    connections[outbox_alias].close()


# --- rejected records, switches -----------------------------------------------------------------------------------


def test_rejected_records_leave_the_open_list(root: Client, outbox_alias: str) -> None:
    records = [add_rejected(outbox_alias), add_rejected(outbox_alias, resolved_at=at(0), resolved_by="anna")]
    records.append(add_rejected(outbox_alias, service="task"))
    kept = add_rejected(outbox_alias)
    selected = [f"{outbox_alias}:{record.pk}" for record in records]
    answer = root.post(REJECTED, {"selected": [*selected, "nowhere:1"]}, follow=True)
    assert said(answer) == ["2 of 3 were taken off the open list; 1 was not on it any more."]
    for record in (*records, kept):
        record.refresh_from_db()
    assert [record.resolved_by for record in (*records, kept)] == ["root", "anna", "root", ""]
    assert [message for _, _, message in journal()] == ["Taken off the open list."] * 2
    assert said(root.post(REJECTED, {}, follow=True)) == ["No record was selected."]


@pytest.mark.parametrize("part", ["relay", "consumer"])
def test_part_of_a_service_is_paused_and_resumed(root: Client, outbox_alias: str, part: str) -> None:
    url = f"{ROUTES}agent/{part}/switch/"
    assert "Pause the" in root.get(url).content.decode()
    answer = root.post(url, {"do": "pause", "reason": "<i>broker</i> moves"}, follow=True)
    assert said(answer) == [f"The {part} of agent is paused."]
    assert "&lt;i&gt;broker&lt;/i&gt; moves" in answer.content.decode()
    switch = ServiceSwitch.objects.using(outbox_alias).get(pk="agent")
    assert (switch.relay_paused, switch.consumer_paused) == (part == "relay", part == "consumer")
    assert (switch.reason, switch.changed_by) == ("<i>broker</i> moves", "root")

    assert "was paused already" in said(root.post(url, {"do": "pause", "reason": "again"}, follow=True))[0]
    assert "Resume the" in root.get(url).content.decode()
    root.post(url, {"do": "resume"})
    switch.refresh_from_db()
    assert (switch.relay_paused, switch.consumer_paused) == (False, False)
    assert [(what, message) for _, what, message in journal()] == [
        ("serviceswitch agent", f"{part.capitalize()} paused: <i>broker</i> moves"),
        ("serviceswitch agent", f"{part.capitalize()} resumed."),
    ]


def test_pausing_needs_a_reason(root: Client) -> None:
    answer = root.post(f"{ROUTES}agent/relay/switch/", {"do": "pause", "reason": " "})
    assert "Say why" in answer.content.decode()
    assert not ServiceSwitch.objects.exists()


def test_unknown_part_is_not_found(root: Client) -> None:
    assert root.get(f"{ROUTES}agent/engine/switch/").status_code == 404
    assert root.get(f"{ROUTES}nobody/relay/switch/").status_code == 403


def test_reason_of_any_length_is_kept_as_long_as_the_column_everywhere(root: Client) -> None:
    rows = [add_dead(), add_dead()]
    form = {
        "action": "give-up",
        "selected": [f"agent:{row.pk}" for row in rows],
        "confirmed": "1",
        "reason": "x" * 9_000,
    }
    root.post(DEAD, form)
    root.post(f"{ROUTES}agent/relay/switch/", {"do": "pause", "reason": "x" * 9_000})
    assert now_of(rows[0]).resolution == "x" * 500
    assert [message for _, _, message in journal()] == [
        *[f"Given up: {'x' * 500}"] * 2,
        f"Relay paused: {'x' * 500}",
    ]
