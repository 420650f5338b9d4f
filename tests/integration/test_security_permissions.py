"""Who may see and do what, over every address that the admin has: the table below is all there is to know.

The pages are found by the admin's own resolver: a page without a line in the table fails, and so does one whose line
says something else than the page does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Model
from django.test import Client
from django.urls import URLPattern, reverse

from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from outbox.admin import RecordAdmin
from outbox.admin.pages import DeadEvent, Route
from outbox.models import OutboxMessage, RejectedRecord
from outbox.registry.catalog import service_models
from tests.integration.admin_rows import (
    HIDDEN,
    PAYLOAD,
    REPLAY,
    VIEW_AGENT,
    Page,
    SignIn,
    model_of,
    names,
    pages,
    secret_rows,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db

# --- the table -----------------------------------------------------------------------------------------------------

NOBODY: Final = "nobody"
NOT_SO: Final = "405"
"""The method is refused."""
ANY: Final = "any"
"""The *view* permission of at least one service's messages."""

Needs = tuple[str, str]
"""What GET and what POST need: *view*, *add*, … of the model, ``replay`` and ``payload``, all of those named.

*look* is Django's own rule: *view* or *change*.
"""

READ_ONLY: Final[dict[str, Needs]] = {
    "changelist": ("view", "view"),
    "change": ("view", "view"),
    "history": ("view", "view"),
    "add": (NOBODY, NOBODY),
    "delete": (NOBODY, NOBODY),
}
EDITED: Final[dict[str, Needs]] = {
    "changelist": ("look", "look"),
    "change": ("look", "change"),
    "history": ("look", "look"),
    "add": ("add", "add"),
    "delete": ("delete", "delete"),
}
PAGES: Final[dict[type[Any], dict[str, Needs]]] = {
    OutboxMessage: READ_ONLY
    | {
        "replay": (NOT_SO, "view replay"),
        "give-up": (NOT_SO, "view replay"),
        "edit": ("view replay payload", "view replay payload"),
        "payload": ("view payload", "view payload"),
    },
    RecordAdmin: READ_ONLY,
    NotificationRecord: READ_ONLY | {"again": (NOT_SO, "view replay")},
    RejectedRecord: READ_ONLY | {"changelist": ("view", "view replay")},
    DeadEvent: {"changelist": (ANY, f"{ANY} replay")},
    Route: {"changelist": (ANY, ANY), "switch": ("view-agent replay", "view-agent replay")},
    UserNotificationChannel: EDITED,
}
SITE: Final[dict[str | None, tuple[int, int]]] = {
    # What a member of staff without any permission gets by GET and by POST.
    "index": (200, 200),
    "login": (302, 200),
    "logout": (405, 200),
    "password_change": (200, 200),
    "password_change_done": (200, 405),
    "autocomplete": (403, 405),
    "jsi18n": (200, 405),
    "view_on_site": (404, 404),
    "app_list": (404, 404),
    None: (404, 404),  # what leads nowhere
}
OPEN_TO_STRANGERS: Final = {"login", "logout"}

ROLES: Final[dict[str, Callable[[], tuple[str, ...]]]] = {
    "staff": tuple,
    "everything but view": lambda: (REPLAY, PAYLOAD, *names("add", "change", "delete")),
    "viewer of one service": lambda: (VIEW_AGENT,),
    "operator of one service": lambda: (VIEW_AGENT, REPLAY),
    "viewer": lambda: names("view"),
    "viewer of contents": lambda: (*names("view"), PAYLOAD),
    "operator": lambda: (*names("view"), REPLAY),
    "editor": lambda: (*names("view"), REPLAY, PAYLOAD),
}

# --- asking ---------------------------------------------------------------------------------------------------------


def needs_of(page: Page) -> Needs:
    """Return the line of the table for ``page``; one for the very model goes before one for its kind."""
    kinds = [page.model, *page.model.__mro__, *type(admin.site._registry[page.model]).__mro__]
    for kind in kinds:
        if page.name in PAGES.get(kind, {}):
            return PAGES[kind][page.name]
    raise AssertionError(f"nobody says who may use {page.full_name}: add it to the table")


def is_granted(need: str, page: Page, held: frozenset[str]) -> bool:
    """Say whether a holder of ``held`` has what ``need`` says."""
    label = page.model._meta.app_label, page.model._meta.model_name
    own = {word: f"{label[0]}.{word}_{label[1]}" for word in ("view", "add", "change", "delete")}
    answers = {word: name in held for word, name in own.items()} | {
        "look": bool({own["view"], own["change"]} & held),
        ANY: any(
            f"{model._meta.app_label}.view_{model._meta.model_name}" in held for model in service_models().values()
        ),
        "view-agent": VIEW_AGENT in held,
        "replay": REPLAY in held,
        "payload": PAYLOAD in held,
        NOBODY: False,
    }
    return all(answers[word] for word in need.split())


def form_of(keys: dict[type[Model], Any]) -> dict[str, str]:
    """Return a form that would change something."""
    return {
        "reason": "why",
        "payload": "{}",
        "post": "yes",
        "do": "pause",
        "action": "replay",
        "all": "1",
        "confirmed": "1",
        "selected": f"default:{keys[RejectedRecord]}",
        "user_id": "9",
    }


class Writes:
    """Sees whether a statement writes anything but the session."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.seen |= sql.startswith(("INSERT", "UPDATE", "DELETE")) and "django_session" not in sql
        return execute(sql, params, many, context)


def answered(client: Client, method: str, url: str, form: dict[str, str]) -> Any:
    return client.post(url, form) if method == "POST" else client.get(url)


def meaning(answer: Any) -> str:
    if answer.status_code == 302 and answer["Location"].startswith("/admin/login/"):
        return "login"
    return {200: "granted", 302: "granted", 403: "refused", 405: NOT_SO}.get(
        answer.status_code, str(answer.status_code)
    )


def everything_asked(client: Client, keys: dict[type[Model], Any]) -> Iterator[tuple[Page, str, Any, bool]]:
    """Ask every page by both methods, each time on the same rows; say what came, and whether anything was changed."""
    for page in pages():
        for method in ("GET", "POST"):
            writes = Writes()
            with transaction.atomic(), connection.execute_wrapper(writes):
                answer = answered(client, method, page.url(keys.get(page.model)), form_of(keys))
                transaction.set_rollback(True)
            yield page, method, answer, writes.seen


# --- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [*ROLES, "superuser"])
def test_every_page_is_for_those_who_hold_its_permissions(sign_in: SignIn, root: Client, role: str) -> None:
    held = frozenset(ROLES[role]() if role in ROLES else (REPLAY, PAYLOAD, *names("view", "add", "change", "delete")))
    client = sign_in(*held) if role in ROLES else root
    wrong = []
    for page, method, answer, changed in everything_asked(client, secret_rows()):
        need = needs_of(page)[method == "POST"]
        wanted = need if need == NOT_SO else "granted" if is_granted(need, page, held) else "refused"
        if meaning(answer) != wanted or (changed and (method == "GET" or wanted != "granted")):
            wrong.append(f"{method} {page.full_name}: {meaning(answer)}, not {wanted}; changed: {changed}")
        if HIDDEN in answer.content.decode() and PAYLOAD not in held:
            wrong.append(f"{method} {page.full_name} shows contents")
    assert wrong == []


@pytest.mark.parametrize("is_known", [False, True], ids=["stranger", "user who is no member of staff"])
def test_strangers_are_asked_to_sign_in_everywhere(client: Client, is_known: bool) -> None:
    if is_known:
        client.force_login(User.objects.create_user("outsider"))
    for page, method, answer, changed in everything_asked(client, secret_rows()):
        assert (meaning(answer), changed) == ("login", False), f"{method} {page.full_name}"


def test_pages_of_the_site_itself_say_nothing_of_the_outbox(sign_in: SignIn, client: Client) -> None:
    keys = secret_rows()
    arguments = {"app_label": "agent", "object_id": keys[model_of("agent")], "content_type_id": 1, "url": "nowhere"}
    found = [pattern for pattern in admin.site.get_urls() if isinstance(pattern, URLPattern)]
    assert {pattern.name for pattern in found} == set(SITE)
    for pattern in found:
        needed = pattern.pattern.regex.groupindex
        kwargs = {name: value for name, value in arguments.items() if name in needed}
        url = reverse(f"admin:{pattern.name}", kwargs=kwargs) if pattern.name else "/admin/nowhere/"
        for method, wanted in zip(("GET", "POST"), SITE[pattern.name], strict=True):
            answer = answered(sign_in(), method, url, {})
            assert answer.status_code == wanted, (method, url)
            assert "outbox" not in answer.content.decode().lower(), url
            if pattern.name not in OPEN_TO_STRANGERS:
                client.logout()
                assert meaning(answered(client, method, url, {})) == "login", (method, url)


def test_users_and_groups_are_for_those_who_keep_them(sign_in: SignIn) -> None:
    """Whoever may change users can make himself anything: none of the roles above may."""
    operator = sign_in(*names("view", "add", "change", "delete"), REPLAY, PAYLOAD)
    for page in ("user/", "user/add/", "user/1/change/", "user/1/password/", "group/", "group/add/"):
        for method in ("GET", "POST"):
            assert answered(operator, method, f"/admin/auth/{page}", {}).status_code == 403, page
