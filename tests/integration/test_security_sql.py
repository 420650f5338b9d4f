"""Nothing that comes from outside is ever part of a statement's text: addresses, forms, arguments, configuration."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.db.models import Model
from django.test import Client

from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import ConfigurationError
from outbox.registry.catalog import repository_of
from tests.integration.admin_rows import DEAD, MESSAGES, REJECTED, Page, add_dead, pages, secret_rows, tables
from tests.services import CHECKOUT

pytest_plugins = ("tests.integration.admin_fixtures",)
pytestmark = pytest.mark.django_db

MARK: Final = "inj3cted"
INJECTIONS: Final = (f"{MARK}' OR '1'='1", f'{MARK}"; DROP TABLE tasks --', f"1) UNION SELECT {MARK} --", f"%s{MARK}")


class Statements:
    """Keeps the texts of all statements and whether a value with the mark was given as one."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.given = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "django_session" not in sql:
            self.texts.append(sql)
            self.given += MARK in str(params)
        return execute(sql, params, many, context)


@pytest.fixture
def statements() -> Iterator[Statements]:
    found = Statements()
    with connection.execute_wrapper(found):
        yield found
    assert found.texts
    assert not [text for text in found.texts if MARK in text]


def token(name: str, moment: str, row_id: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps({name: [moment, row_id, True]}).encode()).decode().rstrip("=")


def names_of(page: Page) -> list[str]:
    fields = [field.name for field in page.model._meta.concrete_fields]
    return [*fields, "key", "event_type", "error_class", "service", "state", "status", "id", "q", "o", "p"]


def test_questions_are_parameters(root: Client, statements: Statements) -> None:
    secret_rows()
    for page in pages():
        if page.name != "changelist":
            continue
        queries: list[dict[str, str]] = []
        for text in INJECTIONS[:2]:
            # All at once, since a page reads each for itself; then by itself what leads elsewhere.
            queries += [{name: text for name in names_of(page) if name != "id"}, {"id": text}, {"key": text}]
        for stream in ("rows", "agent", "default"):
            queries += [{"after": token(stream, MARK, 1)}, {"before": token(stream, "2026-01-01", MARK)}]
        for query in [*queries, {"after": token(INJECTIONS[0], "2026-01-01", 1)}]:
            assert root.get(page.url(None), query).status_code in {200, 302, 400}, (page.full_name, query)
    assert statements.given > 20


def test_forms_are_parameters(root: Client, statements: Statements) -> None:
    rows = [add_dead(key=text) for text in INJECTIONS]
    for row, text in zip(rows, INJECTIONS, strict=True):
        root.post(f"{MESSAGES}{row.pk}/give-up/", {"reason": text})
        root.post(f"{MESSAGES}{row.pk}/replay/")
        root.post(DEAD, {"action": "replay", "selected": [f"agent:{text}", f"{text}:1", f"agent:{row.pk}, {text}"]})
        root.post(REJECTED, {"selected": [f"default:{text}", f"{text}:1"]})
        root.post("/admin/outbox/route/agent/relay/switch/", {"do": "pause", "reason": text})
        root.post("/admin/notification/usernotificationchannel/", {"action": text, "_selected_action": text})
    assert statements.given >= len(INJECTIONS)


@pytest.mark.parametrize("text", INJECTIONS)
def test_addresses_and_arguments_are_parameters(root: Client, statements: Statements, text: str) -> None:
    keys: dict[type[Model], Any] = secret_rows()
    for model in keys:
        root.get(f"/admin/{model._meta.app_label}/{model._meta.model_name}/{text}/change/")
    for command in ("outbox_status", "outbox_prune", "outbox_topics", "rehome_outbox", "run_relay"):
        with pytest.raises(CommandError):
            call_command(command, text, stdout=StringIO(), stderr=StringIO())


def test_ids_are_numbers(statements: Statements) -> None:
    row = add_dead()
    for text in INJECTIONS:
        with pytest.raises(TypeError, match="requires a 'int' object"):
            repository_of("agent").replay([row.pk, text])  # type: ignore[list-item]
    assert type(row).objects.get(pk=row.pk).status == "dead"


@pytest.mark.parametrize("text", [*INJECTIONS, "a b", "a;b", "a`b", 'a"b', "ä", "a.b", "a\n", ""])
def test_configuration_names_tables_only(text: str) -> None:
    """Names are part of statements; so they may hold letters, digits and ``_``."""
    with pytest.raises(ConfigurationError):
        ServiceRoute(service="agent", table=text, topic="t", group="g")
    with pytest.raises(ConfigurationError):
        ServiceRoute(service=text, table="t", topic="t", group="g")


def test_tables_and_columns_of_the_code_are_plain_names() -> None:
    for model in tables():
        for name in (model._meta.db_table, *(field.column for field in model._meta.concrete_fields)):
            assert re.fullmatch("[a-z_][a-z0-9_]{0,63}", name), name


# --- the source ----------------------------------------------------------------------------------------------------

SOURCES: Final = [
    path for folder in ("outbox", "agent_events", "smartflow") for path in sorted((CHECKOUT / folder).rglob("*.py"))
]
DANGEROUS_MODULES: Final = {"pickle", "marshal", "shelve", "yaml", "dill"}
DANGEROUS_NAMES: Final = {
    "eval",
    "exec",
    "mark_safe",
    "SafeString",
    "SafeText",
    "csrf_exempt",
    "RawSQL",
    "extra",
    "raw",
}


def dangers(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = [getattr(node.func, "id", getattr(node.func, "attr", ""))]
            names += ["shell=True" for word in node.keywords if word.arg == "shell"]
        else:
            continue
        found += [name for name in names if name.partition(".")[0] in DANGEROUS_MODULES | DANGEROUS_NAMES]
        found += [name for name in names if name == "shell=True"]
    return found


def test_nothing_of_the_code_runs_or_trusts_what_it_reads() -> None:
    assert len(SOURCES) > 100
    assert {str(path): found for path in SOURCES if (found := dangers(path))} == {}


def test_templates_escape_everything() -> None:
    templates = [path for folder in ("outbox", "agent_events") for path in (CHECKOUT / folder).rglob("*.html")]
    assert len(templates) > 10
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|autoescape|\bsafeseq\b|<script>|\son\w+=|style=", text), path
