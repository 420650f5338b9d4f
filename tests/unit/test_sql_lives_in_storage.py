"""All SQL of the library is in ``outbox/storage``; proved by reading the source.

Other modules may narrow a queryset that storage has built, and begin none. What "due" and "blocking" mean is said once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import outbox

ROOT: Final = Path(outbox.__file__).parent
SOURCES: Final = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
ELSEWHERE: Final = {
    "bulk.py": "inserts into tables of apps, none of the library's",
    "contrib/shared_table/relocation.py": "moves rows of a table that was shared, and is deleted with its folder",
    "checks/inspection.py": "asks the databases for their own catalogues",
    "management/command.py": "calls Django's execute() of a command",
    "checks/schema.py": "gives a cursor to Django's introspection",
    "checks/shared_tables.py": "gives a cursor to Django's introspection",
}

STATEMENTS: Final = {"cursor", "execute", "executemany", "callproc", "raw", "extra"}
MANAGERS: Final = {"objects", "_default_manager", "_base_manager"}
BEGINNINGS: Final = {"RawSQL", "QuerySet"}
DJANGOS_OWN: Final = {"LogEntry", "ContentType"}
"""Models of other apps that the admin writes."""

DEFINITIONS: Final = {
    "due": re.compile(r"next_retry_at\s*(IS NULL OR|<=)"),
    "blocking": re.compile(r"\bstatus\s*(=|IN)[^,]*\bAND parks_key\b"),
}


def sql_of(source: str) -> Iterator[int]:
    """Give the lines in which ``source`` runs SQL or begins a queryset."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr in STATEMENTS:
                yield node.lineno
            if _name(function) in BEGINNINGS:
                yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in MANAGERS and _name(node.value) not in DJANGOS_OWN:
            yield node.lineno


def _name(node: ast.AST) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def texts_of(source: str) -> Iterator[str]:
    """Give the texts of ``source``; of one with fields in it also the whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "?" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_searched(name: str) -> bool:
    return not name.startswith(("storage/", "migrations/"))


def test_no_module_outside_of_storage_runs_sql_or_begins_a_queryset() -> None:
    found = {name: lines for name in SOURCES if is_searched(name) and (lines := list(sql_of(SOURCES[name])))}
    assert {name: lines for name, lines in found.items() if name not in ELSEWHERE} == {}
    assert found.keys() == ELSEWHERE.keys(), "an exception that is none any more"


def test_storage_is_where_the_search_finds_much() -> None:
    assert sum(len(list(sql_of(source))) for name, source in SOURCES.items() if not is_searched(name)) > 30


@pytest.mark.parametrize(
    "source",
    [
        "connections[using].cursor()",
        "cursor.execute(sql)",
        "Worker.objects.using(using)",
        "model._base_manager.all()",
        "rows.extra(where=['1'])",
        "rows.annotate(x=RawSQL('1', ()))",
        "QuerySet(model)",
    ],
)
def test_each_way_to_run_sql_is_found(source: str) -> None:
    assert list(sql_of(source))


@pytest.mark.parametrize("source", ["rows.filter(pk=1)", "LogEntry.objects.bulk_create([])", "execute(sql)"])
def test_what_is_none_is_not_found(source: str) -> None:
    assert not list(sql_of(source))


@pytest.mark.parametrize("meaning", DEFINITIONS)
def test_what_a_word_means_is_said_once(meaning: str) -> None:
    saying = {name for name, source in SOURCES.items() if any(map(DEFINITIONS[meaning].search, texts_of(source)))}
    assert saying == {"storage/conditions.py"}
