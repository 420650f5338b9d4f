"""Whatever the admin is asked it answers: no traceback, no change without permission, no markup let through."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from outbox.models import OutboxMessage, RejectedRecord, ServiceSwitch
from tests import fuzz
from tests.fuzz import fuzzing
from tests.integration.admin_rows import (
    DATABASES,
    DEAD,
    MESSAGES,
    REJECTED,
    ROUTES,
    SERVICES,
    SNAPSHOT,
    SNAPSHOTS,
    SignIn,
    add,
    add_dead,
    add_rejected,
    model_of,
    snapshot,
    stored,
)

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db

ANSWERS: Final = {200, 302, 400, 403, 404, 405}

LISTS: Final = (
    MESSAGES,
    DEAD,
    REJECTED,
    ROUTES,
    SNAPSHOTS,
    "/admin/agent/agentchat/",
    "/admin/agent/chathistory/",
    "/admin/agent/agenttimelineevent/",
    "/admin/notification/notificationrecord/",
    "/admin/notification/notificationoutboxmessage/",
    "/admin/active_scheduler/activescheduletrigger/",
)

CHANNELS: Final = "/admin/notification/usernotificationchannel/"

WITH_ROWS: Final = tuple(url for url in LISTS if url not in {DEAD, ROUTES})

NAMES: Final = (
    "status",
    "event_type",
    "key",
    "id",
    "service",
    "error_class",
    "state",
    "after",
    "before",
    "user_id",
    "conversation_id",
    "chat_id",
    "trigger_id",
    "q",
    "o",
    "p",
    "e",
    "all",
    "_popup",
    "_changelist_filters",
    "id__gt",
    "payload__contains",
)

VALUES: Final = (
    "pending",
    "dead",
    "agent",
    "task",
    "open",
    "given-up",
    "all",
    SNAPSHOT,
    "ValueError",
    "conv-1",
    "7",
    "1",
)

MARK: Final = "<xss \"'&>"
"""Markup that has to come back escaped."""

# --- what is asked -----------------------------------------------------------------------------------------------


def token(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


moments = st.one_of(
    st.none(),
    st.sampled_from(fuzz.MOMENTS),
    st.sampled_from(("2026-01-01 00:00:00", "2026-01-01", "20260101T000000", "2026-W01-1", "2026-01-01\x0000:00", "x")),
    fuzz.texts,
)
places = st.tuples(moments, st.integers(-1, 2**63) | st.sampled_from([0, 1, "1", None, 1.5]), st.booleans())
cuts = st.dictionaries(
    st.sampled_from(("all", "rows", "agent", "task", "default", "dead", "pending", "nobody")), places, max_size=3
)
tokens = st.one_of(
    cuts.map(lambda cut: token(json.dumps(cut).encode())),
    cuts.map(json.dumps).flatmap(fuzz.damaged).map(token),
    fuzz.raw_values.map(lambda raw: token(raw.encode("utf-8", "surrogatepass"))),
    fuzz.texts,
)
values = st.sampled_from(VALUES) | fuzz.texts
queries = st.lists(
    st.tuples(st.just("after"), tokens)
    | st.tuples(st.just("before"), tokens)
    | st.tuples(st.sampled_from(NAMES) | fuzz.texts, values),
    max_size=4,
).map(urlencode) | fuzz.texts.map(quote)

TOO_LARGE: Final = ("9" * 19, "9" * 30, fuzz.DIGITS)
"""Numbers that no column holds; the last one Python does not even read."""

ids = (
    st.sampled_from(
        ("1", "0", "-1", "01", "1_0", " 1", "default:1", "mariadb:1", "mysql:1", "nobody:1", ":1", "add", "_2F")
    )
    | fuzz.texts
).filter(lambda row_id: row_id not in TOO_LARGE)
pages = st.sampled_from(("change/", "history/", "delete/", "edit/", "payload/", "replay/", "give-up/", "", "x/"))


def ask(client: Client, url: str, form: dict[str, Any] | None = None) -> Any:
    """Send a request; an exception of a view comes out here, anything but an answer fails."""
    answer = client.get(url) if form is None else client.post(url, form)
    assert answer.status_code in ANSWERS, (answer.status_code, url[:200])
    return answer


def everything() -> list[Any]:
    """Return all that an operator could change."""
    rows: list[Any] = [list(model_of(service).objects.order_by("pk").values_list()) for service in SERVICES]
    return [
        *rows,
        *(list(model.objects.order_by("pk").values_list()) for model in (RejectedRecord, ServiceSwitch, LogEntry)),
    ]


@pytest.fixture
def few(sign_in: SignIn) -> Client:
    """Sign in somebody who may view everything of the agent, and do nothing."""
    return sign_in("agent.view_agentoutboxmessage", "outbox.view_rejectedrecord", "agent.view_agentstatesnapshotrecord")


@pytest.fixture
def dead() -> OutboxMessage:
    """Insert rows of every kind, and return a dead one."""
    for service in SERVICES:
        add(service)
        add_dead(service, age=timedelta(minutes=1), next_retry_at=None)
    for headers in ("[]", "", "{", '[["a"]]', '{"a": 1}', '[["\\u0000", "\\ud800"]]'):
        add_rejected(key=b"\xff", value=b"\x00\xffgarbage", headers=headers)
    return add_dead()


# --- lists and pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", LISTS)
@fuzzing(20)
@given(query=queries)
def test_any_question_to_a_list_is_answered(root: Client, dead: OutboxMessage, url: str, query: str) -> None:
    ask(root, f"{url}?{query}")


@fuzzing(50)
@given(url=st.sampled_from(WITH_ROWS), row_id=ids, page=pages, query=queries)
def test_any_address_of_a_row_is_answered(
    root: Client, few: Client, dead: OutboxMessage, url: str, row_id: str, page: str, query: str
) -> None:
    before = everything()
    for client in (root, few):
        ask(client, f"{url}{quote(row_id, safe='')}/{page}?{query}")
    assert everything() == before


@pytest.mark.parametrize(
    ("page", "number"),
    [
        *((page, number) for page in ("history", "delete", "edit", "payload") for number in TOO_LARGE),
        *((page, number) for page in ("change", "replay", "give-up") for number in TOO_LARGE),
    ],
    ids=lambda value: value if value.isalpha() or "-" in value else f"{len(value)} digits",
)
def test_message_whose_number_is_too_large_is_not_found(
    root: Client, dead: OutboxMessage, page: str, number: str
) -> None:
    before = everything()
    for form in (None, {"reason": "why", "payload": "{}", "post": "yes"}):
        ask(root, f"{MESSAGES}{number}/{page}/", form)
    assert everything() == before


@pytest.mark.parametrize("number", TOO_LARGE, ids=len)
@pytest.mark.parametrize("url", [*(each for each in WITH_ROWS if "outboxmessage" not in each), CHANNELS])
def test_other_row_whose_number_is_too_large_is_not_found(
    root: Client, dead: OutboxMessage, url: str, number: str
) -> None:
    for page in ("change", "history", "delete", "edit", "payload"):
        for form in (None, {"post": "yes"}):
            ask(root, f"{url}{number}/{page}/", form)
    asked = dict.fromkeys(("id", "user_id", "after", "q", "p", "o"), number)
    ask(root, f"{url}?{urlencode(asked)}")


@pytest.mark.parametrize(
    "number",
    TOO_LARGE,
    ids=len,
)
def test_notification_whose_number_is_too_large_is_not_delivered_again(root: Client, number: str) -> None:
    ask(root, f"/admin/notification/notificationrecord/{number}/again/", {})


@pytest.mark.parametrize("page", ["change", "history", "delete"])
@pytest.mark.parametrize("url", [DEAD, ROUTES])
def test_page_without_a_table_has_no_pages_of_rows(root: Client, url: str, page: str) -> None:
    ask(root, f"{url}1/{page}/")


@pytest.mark.django_db(databases=DATABASES)
@pytest.mark.parametrize(
    "outbox_alias",
    ["default", "mariadb", "mysql", "postgres"],
    indirect=True,
)
def test_cursor_at_a_time_out_of_range_is_answered(root: Client, outbox_alias: str) -> None:
    cut = {"agent": ["0001-01-01T00:00:00+00:01", 1, True]}
    ask(root, f"{DEAD}?after={token(json.dumps(cut).encode())}")


# --- actions -----------------------------------------------------------------------------------------------------

selections = st.one_of(
    st.lists(
        st.tuples(st.sampled_from((*SERVICES, "default", "mariadb", "mysql")), st.integers(0, 40)).map(
            lambda one: f"{one[0]}:{one[1]}"
        ),
        max_size=4,
    ).map(",".join),
    fuzz.texts,
    st.sampled_from(("agent:٣", f"agent:{'9' * 18}", "agent:0", "agent:-1", ",,", "agent:1,agent:1", "a" * 64 + ":1")),
)
forms = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(("replay", "give-up", "delete_selected")) | fuzz.texts,
        "selected": st.lists(selections, max_size=3),
        "all": fuzz.texts,
        "confirmed": fuzz.texts,
        "reason": fuzz.texts,
        "do": st.sampled_from(("pause", "resume")) | fuzz.texts,
        "payload": fuzz.texts,
        "token": fuzz.texts,
        "replay": fuzz.texts,
        "post": st.just("yes"),
        "_selected_action": fuzz.texts,
    },
)
targets = st.one_of(
    st.tuples(st.sampled_from(LISTS), st.just(""), st.just("")),
    st.tuples(st.sampled_from(WITH_ROWS), ids.map(lambda row_id: f"{quote(row_id, safe='')}/"), pages),
    st.tuples(
        st.just(ROUTES),
        (st.sampled_from(SERVICES) | fuzz.texts).map(lambda service: f"{quote(service, safe='')}/"),
        (st.sampled_from(("relay", "consumer")) | fuzz.texts).map(lambda part: f"{quote(part, safe='')}/switch/"),
    ),
).map("".join)


@fuzzing(120)
@given(target=targets, query=queries, form=forms)
def test_any_form_is_answered(root: Client, dead: OutboxMessage, target: str, query: str, form: dict[str, Any]) -> None:
    ask(root, f"{target}?{query}", form)


@fuzzing(50)
@given(target=targets, query=queries, form=forms)
def test_nothing_changes_without_permission(
    few: Client, dead: OutboxMessage, target: str, query: str, form: dict[str, Any]
) -> None:
    before = everything()
    ask(few, f"{target}?{query}", form)
    ask(few, f"{MESSAGES}{dead.pk}/{target.rpartition('/')[0].rpartition('/')[2]}/", form)
    for action in ("replay", "give-up", "edit", "payload"):
        assert ask(few, f"{MESSAGES}{dead.pk}/{action}/", form).status_code == 403
    for url in (DEAD, REJECTED):
        assert ask(few, url, form).status_code == 403
    assert everything() == before


@pytest.mark.django_db(databases=DATABASES)
@pytest.mark.parametrize(
    "outbox_alias",
    ["default", "mariadb", "mysql", "postgres"],
    indirect=True,
)
@pytest.mark.parametrize("url", [f"{MESSAGES}%s/give-up/", DEAD, f"{ROUTES}agent/relay/switch/"])
def test_reason_with_a_nul_is_taken(root: Client, outbox_alias: str, url: str) -> None:
    row = add_dead()
    form = {"reason": "a\x00b", "action": "give-up", "selected": f"agent:{row.pk}", "confirmed": "1", "do": "pause"}
    assert ask(root, url.replace("%s", str(row.pk)), form).status_code == 302


# --- the edit form -------------------------------------------------------------------------------------------------

PAYLOAD: Final = fuzz.document(snapshot())


@fuzzing(30)
@given(
    column=fuzz.nested(fuzz.document({"event_type": SNAPSHOT}), "payload", PAYLOAD).map(
        lambda raw: raw.decode("utf-8", "replace")
    ),
    written=fuzz.mutants(PAYLOAD).map(lambda raw: raw.decode("utf-8", "replace")) | fuzz.similar(PAYLOAD),
    button=st.sampled_from(("save", "replay")),
    stale=st.none() | fuzz.texts,
)
def test_any_payload_is_saved_as_a_good_one_or_refused_with_a_reason(
    root: Client, column: str, written: str, button: str, stale: str | None
) -> None:
    row = add_dead()
    type(row).objects.filter(pk=row.pk).update(payload=column)
    url = f"{MESSAGES}{row.pk}/edit/"
    ask(root, f"{MESSAGES}{row.pk}/change/")
    form = ask(root, url).context["form"]

    answer = ask(root, url, {"payload": written, "token": form.token if stale is None else stale, button: "1"})

    now = type(row).objects.get(pk=row.pk)
    if answer.status_code == 302:
        kept = json.loads(now.payload)
        assert (kept["event_type"], kept["payload"]["conversation_id"]) == (SNAPSHOT, "conv-1")
        assert now.status == ("pending" if button == "replay" else "dead")
    else:
        assert answer.context["form"].problem
        assert (now.status, now.payload) == ("dead", column)


# --- where a user wants to be told ---------------------------------------------------------------------------------

HOST: Final = "www.feishu.cn"
webhooks = st.one_of(
    fuzz.texts,
    st.lists(
        st.sampled_from(
            ("https://", "http://", "//", HOST, "/flow/api/trigger-webhook/", "x", "@", ":443", ":x", "[", "]")
        )
        | st.sampled_from(("..", "%2e", "\\", "#", "?", " ", "\t", "\x00", "é", "։", "xn--", "。")),
        max_size=6,
    ).map("".join),
)


@fuzzing(25)
@given(
    form=st.fixed_dictionaries(
        {"webhook": webhooks},
        optional={"user_id": fuzz.texts, "token": fuzz.texts, "enabled": fuzz.texts, "remove_token": fuzz.texts},
    )
)
def test_any_channel_is_saved_or_refused(root: Client, few: Client, form: dict[str, Any]) -> None:
    url = f"{CHANNELS}add/"
    ask(root, url, form)
    before = everything()
    assert ask(few, url, form).status_code == 403
    assert everything() == before


# --- markup --------------------------------------------------------------------------------------------------------


@fuzzing(6)
@given(
    around=st.sampled_from(("", '{"payload": ', '{"payload": {"a": "', '["', "\\u003c", "<!--", "</script>", "\x00")),
    cut=fuzz.texts,
)
def test_markup_comes_back_escaped_wherever_it_came_in(root: Client, around: str, cut: str) -> None:
    evil = f"{around}{MARK}{cut}"
    short = evil[:120]
    row = add_dead(
        payload=evil,
        key=short,
        event_type=f"{MARK}{SNAPSHOT}"[:64],
        topic=short,
        traceparent=evil[:55],
        last_error=evil,
        error_class=short,
        traceback=evil,
        resolution=evil[:500],
    )
    editable = add_dead(payload=evil, key=MARK)
    good = add_dead(payload=stored({**snapshot(), "snapshot_json": evil, "phase": MARK}))
    record = add_rejected(
        topic=short, key=evil.encode(), value=evil.encode(), headers=json.dumps([[evil, evil]]), reason=evil[:500]
    )
    where = urlencode({"key": MARK, "event_type": evil, "error_class": MARK, "service": MARK, "state": MARK})
    urls = [
        MESSAGES,
        f"{MESSAGES}?{where}",
        DEAD,
        f"{DEAD}?{where}",
        REJECTED,
        f"{REJECTED}{record.pk}/change/",
        f"{MESSAGES}{editable.pk}/edit/",
        f"{MESSAGES}{good.pk}/edit/",
        *(f"{MESSAGES}{each.pk}/{page}/" for each in (row, editable, good) for page in ("change", "history")),
    ]
    for url in urls:
        answer = root.get(url, follow=True)
        assert answer.status_code == 200
        assert MARK not in answer.content.decode()
        assert "<xss" not in answer.content.decode()
    refused = root.post(f"{MESSAGES}{good.pk}/edit/", {"payload": evil, "token": evil, "save": "1"}, follow=True)
    assert "<xss" not in refused.content.decode()
    asked = root.post(
        DEAD, {"action": "give-up", "selected": f"agent:{row.pk}", "confirmed": "1", "reason": " "}, follow=True
    )
    assert "<xss" not in asked.content.decode()
