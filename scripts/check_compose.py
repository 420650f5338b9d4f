"""Check compose.yaml: by Docker's own compose where it is installed, else as YAML with the few rules that we know."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Service: TypeAlias = Mapping[str, Any]

COMPOSE_FILE = Path(__file__).resolve().parents[1] / "compose.yaml"


def main() -> int:
    """Say what is wrong and give 1, or say what was checked."""
    if _has_compose():
        command = ["docker", "compose", "--file", str(COMPOSE_FILE), "--profile", "*", "config", "--quiet"]
        return subprocess.run(command, check=False).returncode
    problems = list(find_problems(COMPOSE_FILE))
    for problem in problems:
        print(f"{COMPOSE_FILE.name}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{COMPOSE_FILE.name}: valid YAML, names and ports are right; docker compose is not here to look closer")
    return 1 if problems else 0


def find_problems(path: Path) -> Iterator[str]:
    """Give what is wrong with the file as far as can be said without Docker."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        yield f"not YAML: {error}"
        return
    for name, service in found["services"].items():
        for problem in (
            *_problems_of_start(service, found["services"]),
            *_problems_of_ports(service),
            *_problems_of_volumes(service, found.get("volumes", {})),
        ):
            yield f"{name} {problem}"


def _problems_of_start(service: Service, services: Mapping[str, Service]) -> Iterator[str]:
    if "image" not in service and "build" not in service:
        yield "has neither an image nor a build"
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            yield f"depends on {other}, which is not there"
        elif how.get("condition") == "service_healthy" and "healthcheck" not in services[other]:
            yield f"waits for the health of {other}, which has no health check"


def _problems_of_ports(service: Service) -> Iterator[str]:
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"opens port {port} to more than this machine"


def _problems_of_volumes(service: Service, declared: Collection[str]) -> Iterator[str]:
    for volume in service.get("volumes", []):
        source = str(volume).partition(":")[0]
        if not source.startswith((".", "/")) and source not in declared:
            yield f"uses the volume {source}, which is not declared"


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
