"""Start one program in the background, print its process id, end. Run as a script, told what to do by JSON on stdin.

A second process stays behind as the program's parent, only to bury it: a dead program that nobody waits for keeps its
process id, and PostgreSQL takes that for a running server. Not every machine's first process cleans up after others.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from typing import Any


def main() -> int:
    """Start what stdin says."""
    order = json.load(sys.stdin)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _stay_with(order, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        answer = pipe.read()
    if answer.isdigit():
        print(answer)
        return 0
    print(answer or "the launcher ended", file=sys.stderr)
    return 1


def _stay_with(order: dict[str, Any], writer: int) -> None:
    """Start the program, tell its id or what went wrong, and wait for its end. Never return."""
    try:
        os.setsid()
        process = _start(order)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.write(writer, str(process.pid).encode())
        os.close(writer)
        process.wait()
    except (OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    identity: dict[str, Any] = {}
    if order["user"]:
        entry = pwd.getpwnam(order["user"])
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "umask": 0o077}
    with open(order["log"], "ab", buffering=0) as log:
        return subprocess.Popen(
            order["argv"],
            cwd=order["cwd"],
            env={**os.environ, **order["env"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **identity,
        )


if __name__ == "__main__":
    sys.exit(main())
