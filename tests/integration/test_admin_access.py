"""Who may see and do what in the admin; what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.models import ServiceSwitch
from tests.integration.admin_rows import (
    DEAD,
    MESSAGES,
    PAYLOAD,
    REJECTED,
    REPLAY,
    ROUTES,
    SNAPSHOTS,
    VIEW_AGENT,
    VIEW_REJECTED,
    SignIn,
    add,
    add_dead,
    add_rejected,
    now_of,
    snapshot,
    statuses,
    stored,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db

PAGES = (ROUTES, DEAD, REJECTED, MESSAGES, SNAPSHOTS)
SECRET = "secret-of-a-user"

Post = Callable[[Client, int], Any]

POSTS: dict[str, Post] = {
    "replay": lambda client, row_id: client.post(f"{MESSAGES}{row_id}/replay/"),
    "give up": lambda client, row_id: client.post(f"{MESSAGES}{row_id}/give-up/", {"reason": "x"}),
    "edit": lambda client, row_id: client.post(f"{MESSAGES}{row_id}/edit/", {"payload": "{}", "replay": "1"}),
    "replay selected": lambda client, row_id: client.post(DEAD, {"action": "replay", "selected": f"agent:{row_id}"}),
    "give up selected": lambda client, row_id: client.post(
        DEAD, {"action": "give-up", "selected": f"agent:{row_id}", "confirmed": "1", "reason": "x"}
    ),
    "pause": lambda client, row_id: client.post(f"{ROUTES}agent/relay/switch/", {"do": "pause", "reason": "x"}),
}


@pytest.mark.parametrize("page", PAGES)
def test_stranger_is_asked_to_sign_in(client: Client, page: str) -> None:
    response = client.get(page)
    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")


@pytest.mark.parametrize("page", [*PAGES, f"{MESSAGES}1/change/", f"{MESSAGES}1/edit/", f"{MESSAGES}1/payload/"])
def test_staff_without_permission_sees_nothing(sign_in: SignIn, page: str) -> None:
    client = sign_in()
    assert client.get(page).status_code == 403
    assert "outbox" not in client.get("/admin/").content.decode().lower()


def test_index_leads_to_what_the_user_may_view(sign_in: SignIn) -> None:
    index = sign_in(VIEW_AGENT).get("/admin/").content.decode()
    assert all(page in index for page in (ROUTES, DEAD, MESSAGES))
    assert "/admin/task/" not in index
    assert REJECTED not in index
    assert "orker" not in index
    assert "ease" not in index


def test_services_are_shown_to_those_who_may_view_their_messages(sign_in: SignIn) -> None:
    mine, other = add_dead("agent", last_error="mine died"), add_dead("task", last_error="other died")
    client = sign_in(VIEW_AGENT, REPLAY, PAYLOAD)
    for page in (DEAD, f"{DEAD}?service=task"):
        content = client.get(page).content.decode()
        assert "mine died" in content
        assert "other died" not in content
    assert "task_outbox_messages" not in client.get(ROUTES).content.decode()

    client.post(DEAD, {"action": "replay", "selected": f"task:{other.pk},agent:{mine.pk}"})
    client.post(DEAD, {"action": "replay", "all": "1", "confirmed": "1"})
    assert statuses([mine, other]) == ["pending", "dead"]
    assert client.get("/admin/outbox/route/task/relay/switch/").status_code == 403


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
def test_viewer_changes_nothing(sign_in: SignIn, post: Post) -> None:
    row = add_dead()
    client = sign_in(VIEW_AGENT, PAYLOAD, VIEW_REJECTED)
    assert post(client, row.pk).status_code == 403
    assert now_of(row).status == "dead"
    assert now_of(row).resolved_at is None
    assert not ServiceSwitch.objects.exists()
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
def test_operator_without_view_permission_changes_nothing(sign_in: SignIn, post: Post) -> None:
    row = add_dead()
    assert post(sign_in(REPLAY, PAYLOAD, "task.view_taskoutboxmessage"), row.pk).status_code in {302, 403}
    assert now_of(row).status == "dead"
    assert now_of(row).resolved_at is None
    assert not ServiceSwitch.objects.exists()


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
def test_post_from_another_site_is_refused(sign_in: SignIn, post: Post) -> None:
    row = add_dead()
    client = sign_in(VIEW_AGENT, PAYLOAD, REPLAY, enforce_csrf_checks=True)
    assert post(client, row.pk).status_code == 403
    assert now_of(row).status == "dead"
    assert not ServiceSwitch.objects.exists()


def test_taking_rejected_records_off_the_list_needs_its_permission(sign_in: SignIn) -> None:
    record = add_rejected()
    assert sign_in(VIEW_REJECTED).post(REJECTED, {"selected": f"default:{record.pk}"}).status_code == 403
    record.refresh_from_db()
    assert record.resolved_at is None


def test_payload_is_shown_to_those_who_may_see_it_only(sign_in: SignIn) -> None:
    row = add_dead(payload=snapshot(phase=SECRET))
    record = add_rejected(key=SECRET.encode(), value=SECRET.encode(), headers=f'[["h", "{SECRET}"]]')
    state = AgentStateSnapshotRecord.objects.create(conversation_id="c", user_id=1, snapshot_json=f'"{SECRET}"')
    pages = [DEAD, f"{MESSAGES}{row.pk}/change/", f"{REJECTED}{record.pk}/change/", f"{SNAPSHOTS}{state.pk}/change/"]
    view = (VIEW_AGENT, VIEW_REJECTED, "agent.view_agentstatesnapshotrecord")

    blind, seeing = sign_in(*view), sign_in(*view, PAYLOAD)
    for page in pages:
        assert SECRET in seeing.get(page).content.decode(), page
        assert SECRET not in blind.get(page).content.decode(), page
    assert " B</span>" in blind.get(pages[1]).content.decode()
    assert blind.get(f"{MESSAGES}{row.pk}/payload/").status_code == 403
    assert seeing.get(f"{MESSAGES}{row.pk}/payload/").content.decode() == row.payload


def test_operator_who_sees_no_payload_replays_and_does_not_edit(sign_in: SignIn) -> None:
    row = add_dead()
    client = sign_in(VIEW_AGENT, REPLAY)
    assert "Edit the payload" not in client.get(f"{MESSAGES}{row.pk}/change/").content.decode()
    assert POSTS["edit"](client, row.pk).status_code == 403
    assert now_of(row).payload == row.payload
    assert POSTS["replay"](client, row.pk).status_code == 302
    assert now_of(row).status == "pending"


@pytest.mark.parametrize(
    "model", ["agent/agentoutboxmessage", "outbox/rejectedrecord", "agent/agentstatesnapshotrecord"]
)
def test_nobody_adds_changes_or_deletes_a_row(root: Client, model: str) -> None:
    row, record = add(status="consumed"), add_rejected()
    state = AgentStateSnapshotRecord.objects.create(conversation_id="c", user_id=1, snapshot_json="{}")
    row_id = {"agentoutboxmessage": row.pk, "rejectedrecord": record.pk}.get(model.split("/")[1], state.pk)
    assert root.get(f"/admin/{model}/add/").status_code == 403
    assert root.post(f"/admin/{model}/add/").status_code == 403
    assert root.post(f"/admin/{model}/{row_id}/delete/", {"post": "yes"}).status_code == 403
    root.post(f"/admin/{model}/{row_id}/change/", {"status": "pending", "snapshot_json": "x", "reason": "x"})
    assert (now_of(row).status, now_of(row).payload) == ("consumed", stored(snapshot()))
    state.refresh_from_db()
    record.refresh_from_db()
    assert (state.snapshot_json, record.reason) == ("{}", "EnvelopeError: the record has no value")


@pytest.mark.parametrize("action", ["replay", "give-up"])
def test_following_a_link_changes_nothing(root: Client, action: str) -> None:
    row = add_dead()
    assert root.get(f"{MESSAGES}{row.pk}/{action}/").status_code == 405
    assert now_of(row).status == "dead"
