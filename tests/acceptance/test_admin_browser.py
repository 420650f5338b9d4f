"""The way of an operator at night, in a real browser on a real server: see what died, mend it, see it consumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from outbox.models import ServiceSwitch
from tests.integration.admin_rows import (
    DEAD,
    MESSAGES,
    REJECTED,
    ROUTES,
    SNAPSHOTS,
    add,
    add_dead,
    add_rejected,
    now_of,
    snapshot,
    statuses,
)
from tests.services import in_ci

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
TIMEOUT_MS = 15_000
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium; without one the tests are skipped at home and fail in CI."""
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    # Playwright's synchronous interface runs an event loop on this thread; the ORM is used between its calls only.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    try:
        with sync_playwright() as playwright:
            try:
                chromium = playwright.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
                )
            except Error as error:
                reason = f"Chromium does not start ({CHROMIUM}): {error}"
                if in_ci():
                    pytest.fail(reason, pytrace=False)
                pytest.skip(reason)
            yield chromium
            chromium.close()
    finally:
        if before is None:
            del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
        else:
            os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


class Operator:
    """Somebody who sits at the admin. A page that runs foreign script or breaks its own is an error."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.address = address
        self.troubles: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._refuse)

    def sign_in(self) -> None:
        self.open("/admin/")
        self.page.get_by_label("Username").fill("root")
        self.page.get_by_label("Password").fill("secret")
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.get_by_role("heading", name="Site administration")).to_be_visible()

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}{path}")

    def sees(self, text: str) -> None:
        expect(self.page.locator("#container")).to_contain_text(text)

    def follow(self, link: str) -> None:
        self.page.locator("#content-main").get_by_role("link", name=link).first.click()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def _hear(self, message: Any) -> None:
        """Take it as a trouble when the page wants what its own policy forbids."""
        if "Content Security Policy" in message.text:
            self.troubles.append(message.text)

    def _refuse(self, dialog: Any) -> None:
        self.troubles.append(f"a dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def operator(browser: Browser, live_server: Any) -> Iterator[Operator]:
    User.objects.create_superuser("root", password="secret")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    someone = Operator(context, live_server.url)
    someone.sign_in()
    yield someone
    context.close()
    assert someone.troubles == []


def work() -> None:
    """Run the workers of the agent service until nothing is left to do."""
    call_command("run_relay", "agent", "--once", stdout=StringIO())
    call_command("consume", "agent", "--once", stdout=StringIO())


def test_dead_event_is_replayed_and_consumed(operator: Operator) -> None:
    row = add_dead(key="conv-9", last_error="OperationalError: the lock was not to be had")
    operator.page.get_by_role("link", name="Routes").first.click()
    operator.sees("1 of 5 services need a look.")
    operator.sees("1 event is dead and open.")
    operator.sees("agent_outbox_messages")

    operator.follow("1 dead")
    operator.sees("the lock was not to be had")
    operator.follow("agent.state.snapshot.persist")
    operator.sees("died 3m")
    operator.sees('"conversation_id": "conv-9"')
    operator.press("Replay")
    operator.sees("Replayed: the event is sent again")
    assert now_of(row).status == "pending"

    work()
    operator.page.reload()
    expect(operator.page.locator(".ob-badge").first).to_have_text("consumed")
    assert AgentStateSnapshotRecord.objects.get(conversation_id="conv-9").phase == "plan"
    operator.open(ROUTES)
    operator.sees("All services are well.")
    operator.open("/admin/")
    operator.sees(f"agent.state.snapshot.persist #{row.pk}")


def test_broken_payload_is_mended_and_consumed(operator: Operator) -> None:
    row = add(key="conv-9", payload=snapshot("conv-9", phase="x" * 40))
    work()
    assert now_of(row).status == "dead"

    operator.open(DEAD)
    operator.sees("PayloadError")
    operator.follow("agent.state.snapshot.persist")
    operator.follow("Edit the payload")
    field = operator.page.get_by_label("Payload")
    assert json.loads(field.input_value()) == snapshot("conv-9", phase="x" * 40)
    field.fill('{"conversation_id": "conv-9"}')
    operator.press("Save and replay")
    operator.sees("missing required field")
    expect(field).to_have_value('{"conversation_id": "conv-9"}')
    field.fill(json.dumps(snapshot("conv-9", phase="mended")))
    operator.press("Save and replay")
    operator.sees("Payload saved and the event replayed.")

    work()
    assert now_of(row).status == "consumed"
    assert AgentStateSnapshotRecord.objects.get(conversation_id="conv-9").phase == "mended"


def test_events_of_two_services_are_given_up_together(operator: Operator) -> None:
    rows = [add_dead(), add_dead("task"), add_dead("memory")]
    operator.open(DEAD)
    operator.page.get_by_label("all on this page").check()
    operator.sees("3 selected")
    operator.page.get_by_label(f"Select memory {rows[2].pk}").uncheck()
    operator.sees("2 selected")
    operator.press("Give up selected…")
    operator.sees("Give up 2 dead events?")
    operator.page.get_by_label("Reason").fill("the user is gone")
    operator.press("Give up")
    operator.sees("2 were given up.")
    assert statuses(rows) == ["dead"] * 3
    expect(operator.page.locator(".ob-card")).to_have_count(1)
    operator.page.get_by_text("given up", exact=True).click()
    operator.sees("Given up by root, 0s ago: the user is gone")
    expect(operator.page.locator(".ob-card")).to_have_count(2)


def test_all_that_match_are_replayed(operator: Operator) -> None:
    rows = [add_dead(key=f"conv-{number}") for number in range(30)]
    operator.open(DEAD)
    operator.page.get_by_label("all that match the filter").check()
    operator.sees("all that match")
    operator.press("Replay selected")
    operator.sees("Replay 30 dead events?")
    operator.press("Replay")
    operator.sees("30 were replayed.")
    work()
    assert set(statuses(rows)) == {"consumed"}


def test_relay_is_paused_and_resumed(operator: Operator) -> None:
    row = add()
    operator.open(ROUTES)
    operator.page.locator("#agent").get_by_role("link", name="Pause…").first.click()
    operator.page.get_by_label("Reason").fill("the broker moves")
    operator.press("Pause the relay")
    operator.sees("The relay is paused (root, 0s ago: the broker moves).")
    work()
    assert now_of(row).status == "pending"

    operator.page.locator("#agent").get_by_role("link", name="Resume…").click()
    operator.press("Resume the relay")
    operator.sees("The relay of agent is resumed.")
    work()
    assert now_of(row).status == "consumed"
    assert not ServiceSwitch.objects.get(pk="agent").relay_paused


def test_list_is_paged_and_filtered(operator: Operator) -> None:
    rows = [add(key=f"conv-{number}", status="consumed") for number in range(60)]
    operator.page.get_by_role("link", name="Agent outbox messages").first.click()
    expect(operator.page.locator(".ob-table tbody tr")).to_have_count(50)
    operator.follow("Older")
    expect(operator.page.locator(".ob-table tbody tr")).to_have_count(10)
    operator.follow("Newer")
    operator.sees(str(rows[-1].pk))
    operator.page.get_by_text("dead", exact=True).click()
    operator.sees("No message is like this.")
    operator.follow("Clear")
    operator.page.get_by_label("Key, exactly").fill("conv-7")
    operator.press("Show")
    expect(operator.page.locator(".ob-table tbody tr")).to_have_count(1)
    operator.page.get_by_label("ID", exact=True).fill(str(rows[3].pk))
    operator.press("Show")
    operator.sees(f"#{rows[3].pk}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_the_screen_and_run_no_foreign_script(operator: Operator, scheme: Any) -> None:
    evil = '<script>takenOver = 1; alert(1)</script>"><img src=x onerror=takenOver=2><svg/onload=takenOver=3>'
    long = "conversation-" + "x" * 115
    row = add_dead(key=long, last_error=evil + long * 10, error_class="E" * 200, parks_key=True, payload=snapshot(evil))
    add(key=long, event_type="e" * 64, last_error=long, next_retry_at=timezone.now() + timedelta(hours=1))
    add_dead("task", key=evil, last_error=evil, resolved_at=timezone.now(), resolved_by="r" * 150, resolution="x" * 500)
    record = add_rejected(topic="t" * 128, reason=evil + long * 3, key=evil.encode(), value=evil.encode())
    state = AgentStateSnapshotRecord.objects.create(conversation_id=long, user_id=1, snapshot_json=json.dumps([evil]))
    ServiceSwitch.objects.create(service="agent", relay_paused=True, reason="x" * 500, changed_by="y" * 150)
    operator.page.emulate_media(color_scheme=scheme)
    for width in (1280, 800, 360):
        operator.page.set_viewport_size({"width": width, "height": 800})
        for path in (
            ROUTES,
            DEAD,
            f"{DEAD}?state=all",
            MESSAGES,
            f"{MESSAGES}{row.pk}/change/",
            f"{MESSAGES}{row.pk}/edit/",
            f"{REJECTED}",
            f"{REJECTED}{record.pk}/change/",
            SNAPSHOTS,
            f"{SNAPSHOTS}{state.pk}/change/",
        ):
            operator.open(path)
            overflow = operator.page.evaluate(OVERFLOW)
            assert overflow <= 0, f"{path} is {overflow} px wider than {width} px"
            assert operator.page.evaluate("typeof takenOver") == "undefined", path
    assert AgentOutboxMessage.objects.count() == 2
