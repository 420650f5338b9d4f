"""Type checkers refuse a handler that takes another event, or a list where it gets one event, or the reverse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.services import CHECKOUT

SAMPLE = CHECKOUT / "tests" / "fixtures" / "typed_handlers.py"
MARKED = {number for number, line in enumerate(SAMPLE.read_text().splitlines(), start=1) if "# refused" in line}


def run(*command: str) -> str:
    """Run a type checker on the sample; it ends with 1 when it refuses something."""
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


def test_mypy_refuses_handlers_of_the_wrong_delivery(tmp_path: Path) -> None:
    options = ("--config-file=", "--strict", "--follow-imports=silent", f"--cache-dir={tmp_path}")

    found = run("mypy", *options, str(SAMPLE))

    assert {int(line) for line in re.findall(r"typed_handlers\.py:(\d+): error", found)} == MARKED, found


def test_pyright_refuses_handlers_of_the_wrong_delivery(tmp_path: Path) -> None:
    """Its fork basedpyright comes with all that it needs; in the mode ``standard`` it applies the rules of pyright."""
    project = tmp_path / "pyrightconfig.json"
    project.write_text(
        json.dumps({"include": [str(SAMPLE)], "extraPaths": [str(CHECKOUT)], "typeCheckingMode": "standard"})
    )

    found = json.loads(run("basedpyright", "--outputjson", f"--pythonpath={sys.executable}", "--project", str(project)))

    diagnostics = found["generalDiagnostics"]
    lines = {each["range"]["start"]["line"] + 1 for each in diagnostics if each["severity"] == "error"}
    assert lines == MARKED, diagnostics
