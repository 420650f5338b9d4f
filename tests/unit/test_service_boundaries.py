"""A service can be moved out by moving its folder: of another service it imports the events, and nothing else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in (ROOT / "agent_events").glob("*/apps.py"))


def imported(source: str) -> Iterator[str]:
    """Give the full name of everything that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trespasses(service: str, source: str) -> list[str]:
    """Return what a module of ``service`` imports of other services beside their events."""
    found = []
    for name in imported(source):
        parts = name.split(".")
        is_of_another = parts[0] == "agent_events" and parts[1:2] != [service] and set(parts[1:2]) <= set(SERVICES)
        if is_of_another and parts[2:3] != ["events"]:
            found.append(name)
    return found


def test_five_services_are_looked_at() -> None:
    assert SERVICES == ["active_scheduler", "agent", "memory", "notification", "task"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_only_the_events_of_another(service: str) -> None:
    for path in (ROOT / "agent_events" / service).rglob("*.py"):
        assert trespasses(service, path.read_text()) == [], path


def test_the_search_finds_what_it_is_for() -> None:
    assert trespasses("agent", "from agent_events.memory import models") == ["agent_events.memory.models"]
    assert trespasses("agent", "def f():\n    import agent_events.task.models") == ["agent_events.task.models"]
    assert trespasses("agent", "from agent_events.memory.events import MemoryExtractRequested") == []
    assert trespasses("agent", "from agent_events.agent.models import AgentChat") == []


def test_no_test_declares_the_events_of_the_probe_service_in_its_own_process() -> None:
    """They would be routes without a table to every test that runs beside it: see `tests.acceptance.probe.names`."""
    assert "tests.acceptance.probe.events" not in sys.modules
