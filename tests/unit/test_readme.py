"""What the documents show is true: their Python runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from django.core.management import get_commands

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *(CHECKOUT / "docs").glob("*.md")])
NAMES = [str(document.relative_to(CHECKOUT)) for document in DOCUMENTS]
WITH_WHOLE_PYTHON = ["README.md", "docs/architecture.md", "docs/operations.md", "docs/writing-events.md"]

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"# (\w+/\w+\.py)\n")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND_ROW = re.compile(r"^\| `(\w+)[^`]*` \|", re.MULTILINE)
MANAGE = re.compile(r"manage\.py (\w+)")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

SETTINGS = """\
from smartflow.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "shop"]
MIGRATION_MODULES = {"shop": "shop.migrations"}
"""

README_STORY = """\
from shop.models import ShopOutboxMessage, Spending
from shop.orders import place_order
place_order(1, 500); place_order(1, 250); place_order(2, 10)
from django.core.management import call_command
call_command("run_relay", "shop", once=True)
call_command("consume", "shop", once=True)
assert set(ShopOutboxMessage.objects.values_list("status", flat=True)) == {"consumed"}
assert dict(Spending.objects.values_list("customer_id", "cents")) == {1: 750, 2: 10}
"""


def python_blocks(name: str) -> list[str]:
    return PYTHON_BLOCK.findall((CHECKOUT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WITH_WHOLE_PYTHON)
def test_python_compiles(name: str) -> None:
    for block in python_blocks(name):
        compile(block, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = CHECKOUT / name
    broken = [
        link
        for link in LINK.findall(CODE_BLOCK.sub("", document.read_text(encoding="utf-8")))
        if not link.startswith(("http://", "https://", "mailto:")) and not is_there(document, link)
    ]

    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    named = set(MANAGE.findall(text))
    if name == "README.md":
        named |= set(COMMAND_ROW.findall(text))

    assert named - get_commands().keys() == set()


def test_make_targets_exist() -> None:
    made = set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target
        for name in NAMES
        for target in re.findall(r"(?:`|^)make ([\w-]+)", (CHECKOUT / name).read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert named
    assert named <= made


def test_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    checked = [set(re.findall(r"\w+", layer)) for layer in layers]

    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| layer |")[2].partition("\n\n")[0].splitlines()[2:]

    assert [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table] == checked


def test_readme_example_works(tmp_path: Path) -> None:
    build_shop("README.md", tmp_path)

    django(tmp_path, "makemigrations", "shop")
    django(tmp_path, "migrate")
    django(tmp_path, "shell", "--no-imports", "-c", README_STORY)


def test_example_of_writing_events_works(tmp_path: Path) -> None:
    build_shop("docs/writing-events.md", tmp_path)

    django(tmp_path, "makemigrations", "shop")
    result = django(tmp_path, "test", "shop")

    assert "Ran 6 tests" in result.stderr


def is_there(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document if not path else (document.parent / path).resolve()
    if not target.exists():
        return False
    return not anchor or anchor in {slug(heading) for heading in HEADING.findall(target.read_text(encoding="utf-8"))}


def slug(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


def build_shop(document: str, folder: Path) -> None:
    """Write the blocks that name their file; blocks of one file come one after the other."""
    for package in ("shop", "shop/migrations"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    (folder / "shop_settings.py").write_text(SETTINGS)
    for block in python_blocks(document):
        if place := PLACE.match(block):
            with (folder / place[1]).open("a", encoding="utf-8") as file:
                file.write(block + "\n\n")


def django(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(folder), str(CHECKOUT)]),
        "DJANGO_SETTINGS_MODULE": "shop_settings",
        "READ_DOT_ENV": "false",
        "SECRET_KEY": "for-this-test",
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
    }
    result = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_readme_promises_no_more_order_than_reliability_does() -> None:
    """What the one document excepts from the order of a key, the other does not promise."""
    flat = {name: " ".join((CHECKOUT / name).read_text().split()) for name in ("README.md", "docs/reliability.md")}
    promise = flat["README.md"].partition("**Order per key.**")[2].partition(" - **")[0]
    exception = flat["docs/reliability.md"].partition("**Order of ids that were committed out of order.**")[2]
    assert exception.partition(" - **")[0].count("is not skipped") == 1
    assert "commit ids of one key out of order" in promise
    assert "neither is skipped" in promise


def test_glossary_names_modules_that_are_there() -> None:
    text = (CHECKOUT / "docs" / "glossary.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w[\w/]*(?:\.py|/))` \|$", text, re.MULTILINE))

    assert len(named) > 20
    assert [each for each in sorted(named) if not (CHECKOUT / "outbox" / each).exists()] == []
