"""What an event carried is shown to those who may see payloads, and no question of anybody else is answered by it."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from agent_events.notification.models import UserNotificationChannel
from tests.integration.admin_rows import (
    DEAD,
    HIDDEN,
    MESSAGES,
    PAYLOAD,
    REPLAY,
    VIEW_AGENT,
    SignIn,
    contents,
    filled,
    model_of,
    names,
    pages,
    secret_row,
    secret_rows,
    tables,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db

# --- what is shown -------------------------------------------------------------------------------------------------


def page_of(model: type[Model], name: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=args)


def test_contents_are_shown_to_those_who_may_see_them(sign_in: SignIn) -> None:
    """So that it means something where they are not."""
    keys = secret_rows()
    for permissions in ((), (PAYLOAD,)):
        client = sign_in(*names("view"), *permissions)
        urls = [page_of(model, "change", key) for model, key in keys.items() if contents(model)]
        urls = [url for url in urls if "usernotificationchannel" not in url] + [DEAD]
        for url in urls:
            assert (HIDDEN in client.get(url).content.decode()) == bool(permissions), url


@pytest.mark.parametrize("permissions", [(), (REPLAY,)], ids=["viewer", "operator"])
def test_error_is_named_by_its_class_where_its_text_is_hidden(sign_in: SignIn, permissions: tuple[str, ...]) -> None:
    key = secret_rows()[model_of("agent")]
    client = sign_in(VIEW_AGENT, *permissions)
    for url in (DEAD, MESSAGES, f"{MESSAGES}{key}/change/"):
        assert "ValueError" in client.get(url).content.decode(), url
    assert "may quote the payload" in client.get(f"{MESSAGES}{key}/change/").content.decode()


def test_what_is_not_shown_is_not_read(sign_in: SignIn) -> None:
    client, key = sign_in(VIEW_AGENT, REPLAY), secret_rows()[model_of("agent")]
    with CaptureQueriesContext(connection) as queries:
        for url in (DEAD, MESSAGES, f"{MESSAGES}{key}/change/", f"{MESSAGES}{key}/history/"):
            assert client.get(url).status_code == 200
    statements = [query["sql"] for query in queries if "agent_outbox_messages" in query["sql"]]
    assert statements
    assert not [sql for sql in statements if "traceback" in sql or HIDDEN in sql]


def test_sealed_columns_are_shown_to_nobody(root: Client) -> None:
    key = filled(UserNotificationChannel, "x", sealed_webhook=HIDDEN, sealed_token=HIDDEN).pk
    for page in ("", f"{key}/change/", f"{key}/history/", f"{key}/delete/"):
        answer = root.get(f"/admin/notification/usernotificationchannel/{page}")
        assert answer.status_code == 200
        assert HIDDEN not in answer.content.decode(), page


# --- questions that would answer what is not shown -------------------------------------------------------------------

LOOKUPS: Final = ("", "__startswith", "__gt")
LINK: Final = re.compile(r'href="(/admin/[^"]+/change/)[^"]*"')


def listed(answer: Any) -> list[str]:
    return LINK.findall(answer.content.decode())


def test_no_question_to_a_list_tells_what_it_does_not_show(sign_in: SignIn) -> None:
    """A filter, an order or a search by a hidden column would tell its value, letter by letter."""
    client = sign_in(*names("view", "change"))
    asked = 0
    for model in tables():
        page = page_of(model, "changelist")
        secret_row(model, f"{HIDDEN}-1", 1)
        secret_row(model, f"{HIDDEN}-2", 2)
        everybody = listed(client.get(page))
        assert len(set(everybody)) == 2, page
        for column in contents(model):
            for lookup in LOOKUPS:
                name = f"{column}{lookup}"
                answers = [client.get(page, {name: value}) for value in (f"{HIDDEN}-1", "x")]
                refused = {answer.status_code for answer in answers} <= {302, 400}
                assert refused or all(listed(answer) == everybody for answer in answers), f"{page}?{name}="
                asked += 1
            for name, value in (("o", column), ("o", f"-{column}"), ("q", HIDDEN)):
                assert listed(client.get(page, {name: value})) in (everybody, []), f"{page}?{name}={value}"
    assert asked > 100


@pytest.mark.parametrize("to_field", ["payload", "sealed_webhook", "last_error"])
def test_popups_and_other_keys_give_nothing_away(sign_in: SignIn, to_field: str) -> None:
    client, keys = sign_in(*names("view", "change")), secret_rows()
    for page in pages():
        if page.name in {"changelist", "change"}:
            query = {"_popup": "1", "_to_field": to_field, "_changelist_filters": f"{to_field}=1"}
            answer = client.get(page.url(keys.get(page.model)), query)
            assert answer.status_code in {200, 302, 400}
            assert HIDDEN not in answer.content.decode()


def test_nothing_of_the_outbox_can_be_looked_up_by_autocomplete(root: Client) -> None:
    for model in tables():
        options = model._meta
        for field in options.concrete_fields:
            query = {"app_label": options.app_label, "model_name": options.model_name, "field_name": field.name}
            assert root.get("/admin/autocomplete/", {**query, "term": HIDDEN}).status_code == 403


def test_rows_that_are_not_there_look_like_those_that_may_not_be_seen(sign_in: SignIn) -> None:
    keys = secret_rows()
    client = sign_in("auth.view_user")
    for page in pages():
        if page.model in keys and page.model is not UserNotificationChannel:
            there, gone = (client.get(page.url(key)).status_code for key in (keys[page.model], 10**9))
            assert there == gone, page.full_name
