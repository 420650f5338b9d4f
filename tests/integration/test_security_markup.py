"""What strangers wrote is shown as text on every page: it starts no script, leads nowhere, and turns no line around.

Each text of each table is hostile, and every link of the admin is followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import quote, urldefrag, urljoin

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from agent_events.notification.models import UserNotificationChannel
from outbox.models import OutboxMessage, RejectedRecord, ServiceSwitch, ShardLease, Worker
from tests.integration.admin_rows import (
    DEAD,
    MESSAGES,
    REJECTED,
    ROUTES,
    add_dead,
    filled,
    pages,
    said,
    snapshot,
    tables,
)

pytestmark = pytest.mark.django_db

TURNED: Final = "\u202e\u2066\x07\x1b[2J\u200b"
"""What turns a line around, cannot be seen, or commands a terminal."""

HOSTILE: Final = (
    "<script>hurt(1)</script>",
    '"><img src=x onerror=hurt(2)>',
    "'></textarea></title><svg/onload=hurt(3)>",
    "javascript:hurt(4)//",
    "{{7*7}}{% csrf_token %}",
    f"<b>{TURNED}",
)

UNSEEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
FIELD: Final = re.compile(r'<input type="text"[^>]*>')
"""What a person looks for is in the fields of the filter as it was typed, or else it would not be found again."""
VARIANTS_OF_A_PATH: Final = 3
"""So many queries of one page are followed."""


class Tags(HTMLParser):
    """Collects what a browser would act upon, and the links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.broken: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        addresses = [values[name] for name in ("href", "src", "action", "formaction", "data") if name in values]
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        foreign_image = tag in {"img", "iframe", "object", "embed"} and not values.get("src", "").startswith("/static/")
        own_script = tag == "script" and not values.get("src", "").startswith(("/static/", "/admin/jsi18n/"))
        handlers = [name for name in values if name.startswith("on")]
        led_astray = [address for address in addresses if re.match(r"\s*(javascript|data|vbscript):", address, re.I)]
        if foreign_image or own_script or handlers or led_astray:
            self.broken.append(f"<{tag} {values}>")


def assert_harmless(answer: Any, url: str) -> Tags:
    content = answer.content.decode()
    tags = Tags()
    tags.feed(content)
    assert tags.broken == [], url
    for text in HOSTILE[:3]:
        assert text not in content, url
    unseen = UNSEEN.search(FIELD.sub("", content))
    assert unseen is None, f"{url}: {unseen}"
    return tags


@pytest.fixture
def root() -> Client:
    """Sign in somebody whose name is hostile too."""
    client = Client()
    client.force_login(User.objects.create_superuser(HOSTILE[0], first_name=HOSTILE[1], email="a@example.com"))
    return client


def add_dead_raw(column: str, **columns: Any) -> OutboxMessage:
    """Insert a dead row whose payload column is no envelope."""
    row = add_dead("agent", **columns)
    type(row)._default_manager.filter(pk=row.pk).update(payload=column)
    return row


@pytest.fixture
def hostile_rows() -> None:
    for number, text in enumerate(HOSTILE, start=1):
        for model in tables():
            # The hints are made of letters that addresses may have: what turns lines around never gets there.
            is_channel = model is UserNotificationChannel
            filled(model, text.replace(TURNED, "") if is_channel else text, number)
        texts = {"last_error": text, "traceback": text, "error_class": text, "traceparent": text, "topic": text}
        add_dead("agent", key=text, payload=snapshot(text, phase=text, snapshot_json=json.dumps([text])), **texts)
        given_up = {"resolved_at": timezone.now(), "resolved_by": text, "resolution": text}
        add_dead_raw(text, key=text, **given_up, **texts)
        Worker.objects.create(
            worker_id=f"w{number}",
            service="agent",
            role="relay",
            host=text,
            pid=number,
            seen_at=timezone.now() + timedelta(hours=1),
        )
    RejectedRecord.objects.filter(partition__lte=3).update(resolved_at=None, service="agent")
    RejectedRecord.objects.filter(partition=4).update(headers=json.dumps([[text, text] for text in HOSTILE]))
    ShardLease.objects.create(service="agent", role="relay", shard=0, owner=HOSTILE[0])
    ServiceSwitch.objects.create(service="agent", relay_paused=True, reason="".join(HOSTILE), changed_by=HOSTILE[0])


def followed(client: Client, start: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Open ``start`` and all that it leads to within the admin."""
    waiting, known = list(start), set(start)
    variants: dict[str, int] = {}
    while waiting:
        url = waiting.pop(0)
        answer = client.get(url, follow=True)
        yield url, answer
        if not answer.headers["Content-Type"].startswith("text/html"):
            continue
        for link in assert_harmless(answer, url).links:
            target = urldefrag(urljoin(answer.request["PATH_INFO"], link)).url
            path = target.partition("?")[0]
            if not target.startswith("/admin/") or target in known or path == "/admin/logout/":
                continue
            if variants.setdefault(path, 0) < VARIANTS_OF_A_PATH:
                variants[path] += 1
                known.add(target)
                waiting.append(target)


def test_hostile_texts_are_harmless_on_every_page(root: Client, hostile_rows: None) -> None:
    reason = {"reason": "".join(HOSTILE)}
    row = add_dead("agent", key="mine")
    root.post(f"{MESSAGES}{row.pk}/give-up/", reason)  # so that the history has it
    keys = {model: model._default_manager.order_by("-pk").values_list("pk", flat=True)[0] for model in tables()}
    start = [page.url(keys.get(page.model, 1)) for page in pages()]
    seen: dict[str, str] = {}
    for url, answer in followed(root, ["/admin/", f"{DEAD}?state=all", f"{REJECTED}?state=all", *start]):
        if "outbox-admin" in (text := answer.content.decode()):
            assert "script-src 'self';" in answer["Content-Security-Policy"], url
        seen[url] = text
    assert set(start) <= set(seen)
    everything = "".join(seen.values())
    for text in (
        "&lt;script&gt;hurt(1)",
        "onerror=hurt(2)",
        "onload=hurt(3)",
        "javascript:hurt(4)",
        "{{7*7}}",
        "\\u202e",
    ):
        assert text in everything, f"{text} is shown nowhere: the pages were not looked at"
    for model in tables():
        shown = [url for url in seen if f"/{model._meta.model_name}/" in url and "/change/" in url]
        assert len(shown) >= len(HOSTILE), f"{model}: not all rows were opened: {shown}"


def test_hostile_texts_are_harmless_in_questions_and_answers(root: Client) -> None:
    rows = [add_dead("agent", key=text, payload=snapshot(text, phase=text)) for text in HOSTILE]
    for row, text in zip(rows, HOSTILE, strict=True):
        for url, form in (
            (f"{MESSAGES}{row.pk}/edit/", {"payload": text, "token": text}),
            (f"{MESSAGES}{row.pk}/edit/", {"payload": json.dumps({text: text}), "token": row.updated_at.isoformat()}),
            (DEAD, {"action": "give-up", "selected": f"agent:{row.pk},{text}", "confirmed": "1", "reason": " "}),
            (f"{DEAD}?service={quote(text)}", {"action": text, "selected": text}),
            (f"{DEAD}?error_class={quote(text)}&event_type={quote(text)}", {"action": "replay", "all": "1"}),
            (f"{REJECTED}?service={quote(text)}", {"selected": text}),
            (f"{ROUTES}agent/relay/switch/", {"do": "pause", "reason": text}),
            (f"{ROUTES}agent/relay/switch/", {"do": text, "reason": text}),
            (f"{MESSAGES}{row.pk}/give-up/", {"reason": text}),
        ):
            assert_harmless(root.post(url, form, follow=True), url)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_are_harmless(root: Client, text: str) -> None:
    for url in (f"/admin/{text}/", f"{MESSAGES}{text}/change/", f"{REJECTED}{text}/change/", f"/{text}"):
        assert_harmless(root.get(quote(url), follow=True), url)
    names = ("key", "event_type", "status", "error_class", "service", "state", "after", "q", "next")
    for url in (MESSAGES, DEAD, REJECTED, "/admin/login/"):
        for query in (dict.fromkeys(names, text), {"id": text}, {"before": text}):
            assert_harmless(root.get(url, query, follow=True), f"{url}?{query}")


@pytest.mark.parametrize("payload", [*HOSTILE, "<!DOCTYPE html><script>hurt(5)</script>"])
def test_download_is_no_page(root: Client, payload: str) -> None:
    row = add_dead_raw(payload)
    assert root.get(f"{MESSAGES}{row.pk}/payload/").content.decode() == payload
    answer = root.get(f"{MESSAGES}{row.pk}/payload/")
    assert answer["Content-Type"] == "application/json"
    assert answer["Content-Disposition"].startswith("attachment;")
    assert answer["X-Content-Type-Options"] == "nosniff"


def test_payload_with_unseen_characters_is_shown_so_that_it_can_be_saved_unchanged(root: Client) -> None:
    before = snapshot("conv-1", phase="\u202eevil\u200b")
    row = add_dead("agent", payload=before)
    form = root.get(f"{MESSAGES}{row.pk}/edit/").context["form"]
    assert "\\u202eevil\\u200b" in form.text
    answer = root.post(f"{MESSAGES}{row.pk}/edit/", {"payload": form.text, "token": form.token}, follow=True)
    assert said(answer) == ["Payload saved."]
    assert json.loads(type(row).objects.get(pk=row.pk).payload)["payload"] == before
