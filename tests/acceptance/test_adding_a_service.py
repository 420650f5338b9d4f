"""docs/adding-a-service.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding-a-service.md"
_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>file|insert below): (?P<what>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """One block of the page: a file to write, a line to insert, or commands to run."""

    kind: str
    what: str
    text: str


def steps() -> Iterator[Step]:
    for block in _BLOCK.finditer(PAGE.read_text()):
        if block["kind"]:
            yield Step(block["kind"], block["what"], block["text"])
        else:
            assert block["language"] == "console", f"a block that the reader cannot act on: {block[0][:80]}"
            yield from (Step("command", "", line) for line in block["text"].splitlines())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what belongs to the project, without its data and environments."""
    for name in ("manage.py", "outbox", "agent_events", "smartflow"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(command: str, folder: Path) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_ENABLED", "OUTBOX", "DJANGO_SETTINGS_MODULE"}
    }
    environment |= {
        "DEBUG": "true",
        "READ_DOT_ENV": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_leads_from_nothing_to_a_consumed_event(copy: Path) -> None:
    outputs: dict[str, str] = {}
    for step in steps():
        match step.kind:
            case "file":
                (copy / step.what).write_text(step.text)
            case "insert below":
                line, path = step.what.split(" in ")
                text = (copy / path).read_text()
                assert text.count(f"    {line}\n") == 1
                (copy / path).write_text(text.replace(f"    {line}\n", f"    {line}\n{step.text}"))
            case _:
                outputs[step.text] = run(step.text, copy)

    (printed,) = (output for command, output in outputs.items() if "Invoice.objects.get()" in command)
    assert printed.strip().endswith("2026-001")
    assert "consumed 1," in outputs["python manage.py consume billing --once"]
    assert "billing" in outputs["python manage.py outbox_status billing"]
