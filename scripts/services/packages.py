"""System packages that the servers and the tests need, on Debian and its relatives."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.services.errors import MissingPackagesError, ServicesError
from scripts.services.state import CHECKOUT

_MYSQL = ("build-essential", "libmariadb-dev", "pkg-config")

GROUPS: Mapping[str, Sequence[str]] = {
    "mysql": _MYSQL,
    "test": (*_MYSQL, "chromium", "fonts-liberation", "golang-go", "kcat", "libfaketime"),
    "mariadb": ("mariadb-client-core", "mariadb-server-core", "tzdata"),
    "postgres": ("postgresql",),
    "java": ("default-jre-headless",),
    "maven": ("maven",),
}
"""What each group is for: `mysql` builds the Python driver, `test` is what the tests use beside servers, the others
are the servers. MariaDB and Java come as their cores: no system service, no desktop."""

_PROGRAMS: Mapping[str, str] = {"golang-go": "go"}
"""Packages that are large, and that a program on PATH stands for wherever it came from."""

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_ASIDE = Path("/usr/sbin/policy-rc.d.smartflow-aside")
_POLICY_TEXT = "#!/bin/sh\n# smartflow: packages must not start servers while they are being installed.\nexit 101\n"
_LOCK = Path("/run/lock/smartflow-packages.lock")


def ensure(*groups: str) -> None:
    """Install what is missing of these groups; ask nobody and take no time when nothing is."""
    wanted = [package for group in groups for package in _packages(group)]
    missing = [package for package in dict.fromkeys(wanted) if not _is_installed(package)]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise MissingPackagesError(
            f"Missing: {', '.join(missing)} (Debian's names), and there is no apt-get here to install them. "
            "Install their equivalents and give the servers by SMARTFLOW_..._URL, or start a Docker engine."
        )
    if os.getuid() == 0:
        _install(missing)
    elif _may_sudo():
        as_root = ["sudo", "-n", "env", "PYTHONDONTWRITEBYTECODE=1"]
        _run([*as_root, sys.executable, "-m", "scripts.services", "packages", *groups])
    else:
        raise MissingPackagesError(
            f"Missing system packages: {' '.join(missing)}. Neither root nor a sudo without password is at hand; run\n"
            f"    sudo apt-get install --no-install-recommends {' '.join(missing)}\nand then the same command again."
        )


def _packages(group: str) -> Iterator[str]:
    try:
        yield from GROUPS[group]
    except KeyError:
        raise ServicesError(f"There is no group of packages {group!r}; there are: {', '.join(GROUPS)}.") from None
    if "libmariadb-dev" in GROUPS[group] and not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        yield "python3-dev"


def _is_installed(package: str) -> bool:
    if package in _PROGRAMS and shutil.which(_PROGRAMS[package]):
        return True
    if shutil.which("dpkg-query") is None:
        return False
    result = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode == 0 and result.stdout.startswith("ii")


def _may_sudo() -> bool:
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0


def _install(missing: Sequence[str]) -> None:
    print(f"Installing {' '.join(missing)}", file=sys.stderr, flush=True)
    patient = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-q=2"]
    with _no_server_starts():
        _run(["apt-get", "update", *patient])
        _run(["apt-get", "install", "--yes", "--no-install-recommends", *patient, *missing])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        end = "\n".join(result.stdout.splitlines()[-25:])
        raise ServicesError(f"`{' '.join(command)}` failed with code {result.returncode}:\n{end}")


@contextmanager
def _no_server_starts() -> Iterator[None]:
    """Keep packages from starting their servers: the machine's policy is put aside and comes back afterwards.

    If an earlier run died in between, what it put aside comes back now.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _POLICY_ASIDE.exists() and _POLICY.exists() and _POLICY.read_text() != _POLICY_TEXT:
            _POLICY.rename(_POLICY_ASIDE)
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
        try:
            yield
        finally:
            _POLICY.unlink(missing_ok=True)
            if _POLICY_ASIDE.exists():
                _POLICY_ASIDE.rename(_POLICY)
