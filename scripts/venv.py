"""Make a virtual environment from a list of requirements, unless it is there: `python3 -m scripts.venv --help`.

Standard library only: it runs before any virtual environment exists.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

_TRIES = "5"


class VenvError(Exception):
    """The environment could not be made."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is asked for; say what failed and give 1."""
    parser = argparse.ArgumentParser(prog="python3 -m scripts.venv", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out this package")
    options = parser.parse_args(arguments)
    try:
        make(options.folder, options.requirements, without={canonical(name) for name in options.without})
    except VenvError as error:
        print(f"venv: {error}", file=sys.stderr)
        return 1
    return 0


def make(folder: Path, requirements: Path, *, without: Collection[str] = ()) -> None:
    """Make the environment; do nothing when it was made from the same list by the same Python."""
    wanted = list(lines(requirements, without=without))
    mark = folder / ".made-from"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _works(folder) and _read(mark) == _fingerprint(wanted):
            return
        print(f"Making {folder} from {requirements}", file=sys.stderr, flush=True)
        if not _works(folder):
            _create(folder)
        _install(folder, wanted)
        mark.write_text(_fingerprint(wanted))


def lines(requirements: Path, *, without: Collection[str]) -> Iterator[str]:
    """Give the list's lines and those of the lists it includes, less comments and what is left out."""
    for line in requirements.read_text(encoding="utf-8").splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        if included := re.fullmatch(r"(?:-r|--requirement)[ =](.+)", text):
            yield from lines(requirements.parent / included[1].strip(), without=without)
        elif canonical(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) not in without:
            yield text


def canonical(name: str) -> str:
    """Give a package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _fingerprint(wanted: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()


def _works(folder: Path) -> bool:
    """Say whether the environment's Python runs and is of our version."""
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    command = [str(python), "-c", "import sys, pip; print(sys.version)"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode == 0 and result.stdout.strip() == sys.version.strip()


def _create(folder: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise VenvError(f"{sys.executable} cannot make environments; on Debian: apt-get install python3-venv")
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])


def _install(folder: Path, wanted: Sequence[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in wanted))
        file.flush()
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--retries", _TRIES]
        _run([*pip, "install", "--quiet", "--requirement", file.name])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, check=False)
    if result.returncode != 0:
        raise VenvError(f"`{' '.join(command)}` failed with code {result.returncode}; the reason is above.")


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
