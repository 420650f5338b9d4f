"""Mending the payload of a dead event: what is saved keeps the contract, the key, and what others did meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from django.db import connections
from django.test import Client

from outbox import publish
from outbox.admin import editing
from outbox.declarations.contracts import contracts
from outbox.models import OutboxMessage
from tests.integration.admin_rows import (
    DATABASES,
    DEAD,
    MESSAGES,
    ROUTES,
    SNAPSHOT,
    add_dead,
    at,
    journal,
    log_of,
    now_of,
    said,
    snapshot,
    stored,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db(databases=DATABASES)


def edit(client: Client, row: OutboxMessage, payload: Any, *, button: str = "save", token: str | None = None) -> Any:
    """Open the form, write ``payload`` and press ``button``."""
    url = f"{MESSAGES}{row.pk}/edit/"
    form = client.get(url).context["form"]
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return client.post(
        url, {"payload": text, "token": form.token if token is None else token, button: "1"}, follow=True
    )


def test_edited_payload_is_stored_in_its_envelope(root: Client, outbox_alias: str) -> None:
    row = add_dead(payload=snapshot(phase="x" * 99))
    form = root.get(f"{MESSAGES}{row.pk}/edit/").context["form"]
    assert json.loads(form.text) == snapshot(phase="x" * 99)

    answer = edit(root, row, snapshot(phase="plan", user_id=8))
    now = now_of(row)
    assert now.status == "dead"
    assert json.loads(now.payload) == {
        "event_id": "e-1",
        "event_type": "agent.state.snapshot.persist",
        "event_version": "v1",
        "aggregate_id": "conv-1",
        "payload": snapshot(phase="plan", user_id=8),
    }
    assert said(answer) == ["Payload saved."]
    assert journal() == [("root", log_of(row), "Payload edited.")]


@pytest.mark.parametrize(("aggregate", "stored_as"), [(None, ""), (0, "0")])
def test_edit_names_the_aggregate_as_publish_does(
    root: Client, outbox_alias: str, monkeypatch: pytest.MonkeyPatch, aggregate: object, stored_as: str
) -> None:
    contract = replace(contracts.get(SNAPSHOT), aggregate_id=lambda _: aggregate)
    monkeypatch.setitem(contracts._by_type, SNAPSHOT, contract)
    monkeypatch.setitem(contracts._by_payload, contract.payload_type, contract)
    edited = add_dead()
    edit(root, edited, snapshot(phase="plan"))
    event = msgspec.convert(snapshot(phase="plan"), type=contract.payload_type)
    event_id = publish(event)
    published = type(edited).objects.using(outbox_alias).get(payload__contains=event_id)
    assert json.loads(now_of(edited).payload)["aggregate_id"] == stored_as
    assert json.loads(published.payload)["aggregate_id"] == stored_as


def test_edit_that_names_an_aggregate_which_no_record_holds_is_not_saved(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = replace(contracts.get(SNAPSHOT), aggregate_id=lambda _: "a\x00b")
    monkeypatch.setitem(contracts._by_type, SNAPSHOT, contract)
    row = add_dead()
    assert "'aggregate_id': it holds a NUL; remove it" in edit(root, row, snapshot()).context["form"].problem
    assert now_of(row).payload == row.payload


def test_edited_event_is_replayed_at_once(root: Client, outbox_alias: str, replayed: list[dict[str, Any]]) -> None:
    row = add_dead(payload={"nonsense": True})
    answer = edit(root, row, snapshot(), button="replay")
    assert now_of(row).status == "pending"
    assert json.loads(now_of(row).payload)["payload"] == snapshot()
    assert said(answer) == ["Payload saved and the event replayed."]
    assert journal() == [("root", log_of(row), "Payload edited and replayed.")]
    assert replayed == [{"service": "agent", "ids": [row.pk], "by": "root"}]


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ("{", "payload of"),
        ("", "payload of"),
        ("[]", "Expected `object`"),
        ({"conversation_id": "conv-1"}, "missing required field `user_id`"),
        (snapshot(user_id=0), "$.user_id"),
        (snapshot(phase="x" * 33), "$.phase"),
        (snapshot("conv-2"), "an edit cannot move an event"),
        ('{"conversation_id": "conv-1", "user_id": 7, "phase": "\\ud800", "snapshot_json": ""}', "payload of"),
    ],
)
def test_payload_that_breaks_the_contract_is_not_saved(root: Client, payload: Any, problem: str) -> None:
    row = add_dead(payload=snapshot())
    text = payload if isinstance(payload, str) else json.dumps(payload)
    url = f"{MESSAGES}{row.pk}/edit/"
    token = root.get(url).context["form"].token
    answer = root.post(url, {"payload": text, "token": token, "replay": "1"})
    assert answer.status_code == 200
    assert problem in answer.context["form"].problem
    assert answer.context["form"].text == text, "what was typed must not be lost"
    assert (now_of(row).status, now_of(row).payload) == ("dead", row.payload)


DEEP = "[" * 500 + "]" * 500
DEEPER = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize("deep", [DEEP, DEEPER])
def test_payload_that_is_nested_too_deep_is_not_saved(root: Client, deep: str) -> None:
    """Also in a field that the contract passes over: it would be stored, and be more than a consumer can read."""
    row = add_dead(payload=snapshot())
    answer = edit(root, row, json.dumps(snapshot())[:-1] + f', "extra": {deep}}}')
    assert answer.status_code == 200
    problem = answer.context["form"].problem
    assert "agent.state.snapshot.persist" in problem
    assert "'payload'" in problem
    assert "nested deeper than 200 levels" in problem
    assert now_of(row).payload == row.payload


@pytest.mark.parametrize("deep", [DEEP, "[" * 900 + "]" * 900, DEEPER])
def test_stored_payload_that_is_nested_too_deep_can_be_seen_and_mended(
    root: Client, outbox_alias: str, deep: str
) -> None:
    """Other software writes rows too."""
    row = add_dead()
    column = f'{{"event_id": "e-1", "payload": {deep}}}'
    type(row).objects.using(outbox_alias).filter(pk=row.pk).update(payload=column)
    for page in ("change", "edit"):
        assert root.get(f"{MESSAGES}{row.pk}/{page}/").status_code == 200
    edit(root, row, snapshot())
    assert json.loads(now_of(row).payload)["payload"] == snapshot()


def test_two_who_edit_at_once_do_not_overwrite_each_other(root: Client, outbox_alias: str) -> None:
    row = add_dead(payload=snapshot(phase="old"))
    token = root.get(f"{MESSAGES}{row.pk}/edit/").context["form"].token
    edit(root, row, snapshot(phase="first"))
    answer = edit(root, row, snapshot(phase="second"), token=token)
    assert "Somebody else changed this event" in answer.context["form"].problem
    assert json.loads(now_of(row).payload)["payload"]["phase"] == "first"


def test_change_between_reading_and_saving_is_noticed(
    root: Client, outbox_alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = add_dead(payload=snapshot())
    read = editing.EditForm.read

    def read_slowly(self: editing.EditForm, request: Any) -> bool:
        done = read(self, request)
        type(row).objects.using(outbox_alias).filter(pk=row.pk).update(updated_at=at(1))
        return done

    monkeypatch.setattr(editing.EditForm, "read", read_slowly)
    answer = edit(root, row, snapshot(phase="late"))
    assert said(answer) == ["Nothing was changed: somebody else dealt with it meanwhile."]
    assert now_of(row).payload == row.payload


def test_payload_that_is_no_envelope_can_be_mended(root: Client, outbox_alias: str) -> None:
    row = add_dead()
    type(row).objects.using(outbox_alias).filter(pk=row.pk).update(payload="not JSON <script>")
    form = root.get(f"{MESSAGES}{row.pk}/edit/").context["form"]
    assert form.text == "not JSON <script>"
    assert "not an envelope" in form.problem
    edit(root, row, snapshot())
    envelope = json.loads(now_of(row).payload)
    assert envelope["payload"] == snapshot()
    assert envelope["event_id"] == str(row.pk)


@pytest.mark.parametrize("stored", ["not JSON", '{"event_id": "another", "event_version": "v1", "payload": {}}'])
def test_edited_event_keeps_the_event_id_of_its_column(root: Client, outbox_alias: str, stored: str) -> None:
    row = add_dead()
    type(row).objects.using(outbox_alias).filter(pk=row.pk).update(payload=stored, event_id="e-7")
    edit(root, row, snapshot())
    assert (json.loads(now_of(row).payload)["event_id"], now_of(row).event_id) == ("e-7", "e-7")


@pytest.mark.parametrize("outbox_alias", ["mariadb", "mysql"], indirect=True)
def test_event_with_zero_dates_is_shown_and_mended(root: Client, outbox_alias: str) -> None:
    row, other = add_dead(), add_dead()
    zero = "'0000-00-00 00:00:00'"
    columns = ("next_retry_at", "published_at", "dead_at", "created_at", "updated_at")
    with connections[outbox_alias].cursor() as cursor:
        cursor.execute("SET @usual = @@SESSION.sql_mode, SESSION sql_mode = ''")
        assigned = ", ".join(f"{column} = {zero}" for column in columns)
        cursor.execute(f"UPDATE {row._meta.db_table} SET {assigned} WHERE id = {row.pk}")
        cursor.execute("SET SESSION sql_mode = @usual")
    for url in (DEAD, f"{MESSAGES}{row.pk}/change/", MESSAGES, f"{MESSAGES}?status=dead", ROUTES):
        assert root.get(url).status_code == 200, url
    assert len(root.get(DEAD).context["lines"]) == 2
    answer = edit(root, row, snapshot(phase="mended"), button="replay")
    assert said(answer) == ["Payload saved and the event replayed."]
    assert (now_of(row).status, now_of(other).status) == ("pending", "dead")


def test_older_version_is_brought_to_the_current_one(root: Client) -> None:
    row = add_dead()
    type(row).objects.filter(pk=row.pk).update(payload=stored({"was": "other"}, version="v0"))
    assert "stored as version v0" in root.get(f"{MESSAGES}{row.pk}/edit/").content.decode()
    edit(root, row, snapshot())
    assert json.loads(now_of(row).payload)["event_version"] == "v1"


def test_event_without_a_contract_here_is_not_edited(root: Client) -> None:
    for event_type in ("nobody.knows.it", "task.urgency.promote.requested"):
        row = add_dead(event_type=event_type)
        assert "Edit the payload" not in root.get(f"{MESSAGES}{row.pk}/change/").content.decode()
        answer = root.get(f"{MESSAGES}{row.pk}/edit/", follow=True)
        assert said(answer) == ["Only the payload of a dead event can be edited."]


def test_huge_payload_is_not_edited_by_hand(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "EDITABLE_BYTES", 1000)
    row = add_dead(payload=snapshot(snapshot_json="x" * 2000))
    assert root.get(f"{MESSAGES}{row.pk}/edit/").status_code == 302
