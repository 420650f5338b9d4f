"""A Kafka client that shares no code with us."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.services import in_ci


class Kcat:
    """``kcat`` on one topic."""

    def __init__(self, servers: str, topic: str, folder: Path) -> None:
        program = shutil.which("kcat") or shutil.which("kafkacat")
        if program is None:
            (pytest.fail if in_ci() else pytest.skip)("kcat is not installed (Debian: apt-get install kcat)")
        self._command = [program, "-b", servers, "-t", topic]
        self._folder = folder

    def consume(self) -> list[dict[str, Any]]:
        """Return all records of the topic; ``payload`` as JSON, ``headers`` as a dict."""
        done = self._run("-C", "-o", "beginning", "-e", "-q", "-J")
        records = [json.loads(line) for line in done.stdout.decode(errors="replace").split("\n") if line]
        for record in records:
            names, values = record["headers"][::2], record["headers"][1::2]
            record["headers"] = dict(zip(names, values, strict=True))
        return records

    def produce(self, value: bytes, *, key: str, headers: dict[str, str] | None = None) -> None:
        """Write one record; an empty value becomes none at all, as in a topic that is compacted."""
        arguments = [each for name, text in (headers or {}).items() for each in ("-H", f"{name}={text}")]
        if not value:
            self._run("-P", *arguments, "-Z", "-K", "|", given=f"{key}|\n".encode())
            return
        path = self._folder / "record"
        path.write_bytes(value)
        self._run("-P", *arguments, "-k", key, str(path))

    def _run(self, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*self._command, *arguments], input=given, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done
