"""MySQL's programs: fetched from Debian's suite sid by apt, without root and without a change to the system.

No older suite has MySQL. They are unpacked with every library that they need, and run by the loader among them, so that
it does not matter how old the system's own libraries are.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.services.errors import ServicesError, UnobtainableError

SUITE = "sid"
PACKAGE = "mysql-server-core"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INDEX = re.compile(r"^'(\S+?)/?/dists/\S+/InRelease' ", re.MULTILINE)
_REMEDY = "Set SMARTFLOW_MYSQL_URL to a MySQL of your own, or MYSQL=optional to go without."


def ensure() -> Path:
    """Give the folder with MySQL; fetch it where there is none, once for all checkouts.

    One that is there is used as it is, whatever the archive has by now. A half-done fetch leaves nothing behind.

    :raises UnobtainableError: none is there and none can be fetched.
    """
    if found := _newest():
        return found
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "mysql.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := _newest():
            return found
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-mysql.") as folder:
            version = _fetch(Path(folder))
            target = cache / f"mysql-{version}"
            (Path(folder) / "root").rename(target)
    return target


def unpacked() -> Path:
    """Give the folder with MySQL, which an `up` has fetched."""
    if found := _newest():
        return found
    raise ServicesError(f"There is no MySQL in {_cache()}; run `up mysql`, which fetches it.")


def program(root: Path) -> Sequence[str]:
    """Give the beginning of mysqld's command line."""
    for loader in sorted(root.glob("usr/lib/*-linux-gnu*/ld-linux*.so.*")):
        return [str(loader), "--library-path", str(loader.parent), str(root / "usr/sbin/mysqld")]
    raise ServicesError(f"{root} has no loader; remove that folder and run `up mysql` again.")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smartflow"


def _newest() -> Path | None:
    found = [folder for folder in _cache().glob("mysql-[0-9]*") if (folder / "usr/sbin/mysqld").exists()]
    return max(found, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)], default=None)


def _fetch(folder: Path) -> str:
    """Fetch and unpack into the folder's `root`; give the version."""
    for name in ("lists/partial", "cache/archives/partial", "sources", "root"):
        (folder / name).mkdir(parents=True)
    print(f"Fetching MySQL from Debian's suite {SUITE}", file=sys.stderr, flush=True)
    problems: list[str] = []
    for archive in _archives():
        try:
            return _fetch_from(archive, folder)
        except UnobtainableError as error:
            problems.append(str(error))
    reason = "\n".join(problems) or "the machine's own apt sources name no archive"
    raise UnobtainableError(f"Debian's suite {SUITE}, which has MySQL, cannot be had: {reason}\n{_REMEDY}")


def _archives() -> Iterator[str]:
    """Give the addresses of archives that the machine's own apt sources name; those of security updates have no sid."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnobtainableError(f"MySQL is fetched by apt-get and dpkg-deb, which are not here. {_REMEDY}")
    listed = _run(["apt-get", "-o", "Debug::NoLocking=1", "--print-uris", "update"])
    yield from (archive for archive in dict.fromkeys(_INDEX.findall(listed)) if not archive.endswith("security"))


def _fetch_from(archive: str, folder: Path) -> str:
    trusted = f"Signed-By: {_KEYS}\n" if _KEYS.exists() else ""
    source = f"Types: deb\nURIs: {archive}\nSuites: {SUITE}\nComponents: main\n{trusted}"
    (folder / "sources/sid.sources").write_text(source)
    # An apt state of its own, in which nothing is installed: libc comes along, too.
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": folder / "sources",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": _own_name(),
        "APT::Update::Error-Mode": "any",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    apt = ["apt-get", "-q=2", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", PACKAGE])
    version = ""
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        if package.name.startswith(("perl", "libperl")):  # for scripts around the server
            continue
        _run(["dpkg-deb", "--extract", str(package), str(folder / "root")])
        if package.name.startswith(f"{PACKAGE}_"):
            version = _run(["dpkg-deb", "--field", str(package), "Version"]).strip()
    _run([*program(folder / "root"), "--no-defaults", "--version"])
    return re.sub(r"^\d+:|-[^-]*$", "", version)


def _own_name() -> str:
    return _run(["id", "--user", "--name"]).strip()


def _run(command: Sequence[str]) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        end = "\n".join(result.stderr.splitlines()[-10:])
        raise UnobtainableError(f"{command[0]} failed with code {result.returncode}: {end}")
    return result.stdout
