"""Writes docs/api.md: what the public modules of the outbox promise, from their ``__all__`` and their docstrings.

It reads sources and imports nothing, so that no setting and no database changes what it writes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = ROOT / "docs" / "api.md"

PUBLIC_MODULES: Final = (
    "outbox",
    "outbox.models",
    "outbox.fields",
    "outbox.publishing",
    "outbox.bulk",
    "outbox.exceptions",
    "outbox.signals",
    "outbox.testing",
    "outbox.admin",
    "outbox.management",
    "outbox.workers",
    "outbox.log_text",
    "outbox.conf",
    "outbox.routers",
    "outbox.apps",
)
"""In the order of the document. Of a package its own names are public, and none of the modules in it."""

OPENING: Final = """\
# The public interface

What this page lists has a promise: the names in `__all__` of these modules, and of a class what is shown here, follow
semantic versioning. They change incompatibly only with the first number of the version (below 1.0 the second one), and
the [changes](../CHANGELOG.md) say so. Settings ([configuration](configuration.md)), tables and columns are kept
likewise, by migrations. The texts of errors and log lines, and how the library makes its own errors, may change in any
version, and so may everything else in `outbox`: a project imports no other module and no other name. One thing is in
between: a broker of one's own (`OUTBOX["BROKER"]["BACKEND"]`) subclasses `outbox.brokers.base.Broker`, which has no
promise yet.

`make api-docs` writes this page from the docstrings; change those.
"""

Definable = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Definition:
    """Where a public name is defined."""

    module: str
    name: str
    nodes: tuple[Definable, ...]
    """More than one for a function with overloads; the last one has the docstring."""
    doc: str

    @property
    def code(self) -> str:
        """Return what a reader needs of the source: signatures and attributes, without bodies."""
        shown = self.nodes[:-1] or self.nodes
        return "\n".join(_head(self.module, node) for node in shown)


def exported(module: str) -> list[str]:
    """Return ``__all__`` of ``module``."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise LookupError(f"{module} has no __all__")


def definition(module: str, name: str) -> Definition:
    """Find where ``name`` of ``module`` is defined, following its imports."""
    found = [(node, doc) for each, node, doc in _definitions(_tree(module).body) if each == name]
    if found:
        return Definition(module, name, tuple(node for node, _ in found), found[-1][1])
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return definition(node.module, name)
    raise LookupError(f"{module} does not define {name}")


def render() -> str:
    """Return the document."""
    sections, places = [OPENING], dict[tuple[str, str], str]()
    for module in PUBLIC_MODULES:
        own, elsewhere = [], []
        for name in exported(module):
            found = definition(module, name)
            place = places.setdefault((found.module, name), module)
            if place == module:
                own.append(_section(found))
            else:
                elsewhere.append(f"`{name}` ([{place}](#{place.replace('.', '')}))")
        described = _markdown(ast.get_docstring(_tree(module)) or "")
        again = [f"Also here: {', '.join(elsewhere)}."] if elsewhere else []
        sections += ["\n\n".join([f"## {module}", described, *again, *own])]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _section(found: Definition) -> str:
    parts = [f"### {found.name}", f"```python\n{found.code}\n```", _markdown(found.doc)]
    if isinstance(node := found.nodes[-1], ast.ClassDef):
        parts += [_item(found.module, name, member, doc) for name, member, doc in _members(node) if doc]
    return "\n\n".join(parts)


def _item(module: str, name: str, member: Definable, doc: str) -> str:
    """Return a list item on one member of a class."""
    is_called = isinstance(member, ast.FunctionDef) and not _decorators(member)
    shown = re.sub(r"\s+", " ", _head(module, member)).removeprefix("def ") if is_called else name
    shown = (
        shown.replace("( ", "(")
        .replace(", )", ")")
        .replace("(self, ", "(")
        .replace("(cls, ", "(")
        .replace("(self)", "()")
    )
    return f"- `{shown}`: " + _markdown(doc).replace("\n", "\n  ").replace("\n  \n", "\n\n")


def _head(module: str, node: Definable) -> str:
    """Return the source of a signature or an attribute as it stands there; of a class with its attributes."""
    if isinstance(node, ast.FunctionDef):
        return "\n".join([*_decorators(node), _source(module, node, until=node.body[0])])
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        attributes = [member for _, member, _ in _members(node) if not isinstance(member, ast.FunctionDef)]
        below = "\n".join(_head(module, each) for each in [*made, *attributes])
        return f"{_source(module, node, until=node.body[0])}\n{textwrap.indent(below, '    ')}".rstrip()
    return _source(module, node)


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [f"@{each}" for each in map(ast.unparse, node.decorator_list) if each in {"contextmanager", "property"}]


def _source(module: str, node: ast.stmt, *, until: ast.stmt | None = None) -> str:
    lines = _path(module).read_text(encoding="utf-8").splitlines()
    if until is None:
        taken = lines[node.lineno - 1 : node.end_lineno]
    else:
        taken = [*lines[node.lineno - 1 : until.lineno - 1], lines[until.lineno - 1][: until.col_offset]]
    source = re.sub(r"  # (noqa|type:).*", "", textwrap.dedent("\n".join(taken)).strip(), flags=re.MULTILINE)
    return source if until is None else source.rstrip().removesuffix(":")


def _members(node: ast.ClassDef) -> Iterator[tuple[str, Definable, str]]:
    """Give what a class promises: its attributes, and what has a docstring. Django calls views by their address."""
    for name, member, doc in _definitions(node.body):
        if not name.startswith("_") and not name.endswith("_view") and (doc or isinstance(member, ast.AnnAssign)):
            yield name, member, doc


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, Definable, str]]:
    """Give what ``body`` defines, each with its docstring, in its order."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node, ast.get_docstring(node) or ""
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            is_described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            doc = after.value.value if is_described else ""  # type: ignore[union-attr]
            yield ast.unparse(target), node, inspect.cleandoc(doc)


def _markdown(docstring: str) -> str:
    """Return a docstring as Markdown: code, blocks of code, and what is raised as a list."""
    text, _, raised = docstring.partition(":raises ")
    text = re.sub(r"::$", ":", text.strip(), flags=re.MULTILINE).replace("``", "`")
    items = [re.sub(r"\s+", " ", each).strip() for each in raised.split(":raises ") if each]
    errors = "\n".join("- `{}`: {}".format(*each.replace("``", "`").split(": ", 1)) for each in items)
    return f"{text}\n\nRaises:\n\n{errors}" if errors else text


def _path(module: str) -> Path:
    folder = ROOT / module.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
