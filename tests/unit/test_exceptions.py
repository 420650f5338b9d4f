"""One tree of errors: its docstring shows it as it is, and nothing outside of it comes out of a public function."""

from __future__ import annotations

import ast
import re
import traceback

import pytest

from outbox import exceptions
from tests.services import CHECKOUT

CLASSES = {name: getattr(exceptions, name) for name in exceptions.__all__}
LINE = re.compile(r"^    ((?:[│ ]   )*)(?:[├└]── )(\w+)(?: \(and (\w+)\))?$", re.MULTILINE)


def drawn() -> dict[str, list[str]]:
    """Return the bases of each class as the docstring draws them."""
    found, above = {}, ["Exception"]
    for indent, name, besides in LINE.findall(exceptions.__doc__ or ""):
        above[len(indent) // 4 + 1 :] = [name]
        found[name] = [above[-2], *([besides] if besides else [])]
    return found


def test_docstring_shows_the_tree_as_it_is() -> None:
    assert drawn() == {name: [base.__name__ for base in each.__bases__] for name, each in CLASSES.items()}


def test_package_holds_no_error_that_is_not_in_the_tree() -> None:
    sources = [path.read_text() for path in (CHECKOUT / "outbox" / "exceptions").glob("*.py")]
    defined = {node.name for source in sources for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    assert defined == set(CLASSES)


def test_exceptions_outside_of_the_tree_say_that_they_are_private() -> None:
    """They carry something from one module of a room to another, and are caught there."""
    found = {}
    for path in (CHECKOUT / "outbox").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if path.parent.name != "exceptions" and any(re.search(r"(Error|Exception)$", base) for base in bases):
                found[node.name] = ast.get_docstring(node) or ""
    assert "PollFullError" in found
    assert [name for name, said in found.items() if not said.startswith("Private to the ")] == []


@pytest.mark.parametrize("name", exceptions.__all__)
def test_traceback_names_what_can_be_caught(name: str) -> None:
    error = CLASSES[name].__new__(CLASSES[name])
    assert traceback.format_exception_only(error)[0].startswith(f"outbox.exceptions.{name}")
