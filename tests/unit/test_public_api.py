"""What is public is listed, described and importable, and the services import nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import api_docs
from tests.services import CHECKOUT

MODULES = api_docs.PUBLIC_MODULES
OUTBOX = CHECKOUT / "outbox"
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
SERVICES = [path for name in ("agent_events", "smartflow") for path in sorted((CHECKOUT / name).rglob("*.py"))]


def test_document_is_what_the_docstrings_say() -> None:
    assert api_docs.DOCUMENT.read_text() == api_docs.render(), "docs/api.md is stale: run make api-docs"


@pytest.mark.parametrize("module", MODULES)
def test_document_lists_all_of_a_module_and_nothing_else(module: str) -> None:
    text = api_docs.DOCUMENT.read_text()
    section = re.search(rf"^## {re.escape(module)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    also_here = re.search(r"^Also here: (.*)$", section[1], re.MULTILINE)
    listed = re.findall(r"^### (\w+)$", section[1], re.MULTILINE)
    listed += re.findall(r"`(\w+)`", also_here[1]) if also_here else []

    public = importlib.import_module(module)

    assert sorted(listed) == sorted(public.__all__)
    assert [name for name in public.__all__ if not hasattr(public, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_all_that_is_public_is_described(module: str) -> None:
    assert [name for name in api_docs.exported(module) if not api_docs.definition(module, name).doc] == []


# --- who imports what --------------------------------------------------------------------------------------------


def inner_imports(source: str) -> Iterator[str]:
    """Give what a module imports of ``outbox`` beside public names of public modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] == "outbox" and alias.name not in MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "outbox":
            module = node.module or ""
            public = importlib.import_module(module).__all__ if module in MODULES else ()
            for name in (alias.name for alias in node.names):
                if name not in public and f"{module}.{name}" not in MODULES:
                    yield f"{module}.{name}"


def test_services_import_public_names_only() -> None:
    assert SERVICES
    assert {str(path): found for path in SERVICES if (found := list(inner_imports(path.read_text())))} == {}


def test_the_search_finds_what_it_is_for() -> None:
    assert list(inner_imports("from outbox.storage.dialects import to_db")) == ["outbox.storage.dialects.to_db"]
    assert list(inner_imports("def f():\n    import outbox.relay.loop")) == ["outbox.relay.loop"]
    assert list(inner_imports("from outbox.fields import KeyField, SHARD_COUNT")) == ["outbox.fields.SHARD_COUNT"]
    assert list(inner_imports("from outbox import storage")) == ["outbox.storage"]
    assert list(inner_imports("import outbox.fields\nfrom outbox import publish, signals")) == []


def test_contract_forbids_services_every_module_that_is_not_public() -> None:
    """import-linter looks at the list: a new module is public, or it is there."""
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["name"].startswith("Services import public modules only")]
    packages = {f"outbox.{path.parent.name}" for path in OUTBOX.glob("*/__init__.py")}
    modules = {f"outbox.{path.stem}" for path in OUTBOX.glob("*.py") if path.stem != "__init__"}

    inner = (packages | modules) - {*MODULES}
    inside_public = {f"{package}.*" for package in packages & {*MODULES}}

    assert sorted(contract["forbidden_modules"]) == sorted(inner | inside_public)
    assert contract["source_modules"] == ["agent_events", "smartflow"]


# --- the package -------------------------------------------------------------------------------------------------


def test_wheel_holds_the_types_and_all_that_the_app_needs(tmp_path: Path) -> None:
    """``py.typed`` tells type checkers that the annotations are meant for them."""
    build = f"from flit_core.buildapi import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=CHECKOUT, check=True, timeout=120)

    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("outbox/")}

    needed = {path for path in OUTBOX.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert "outbox/py.typed" in packed
    assert {str(path.relative_to(CHECKOUT)) for path in needed} == packed
