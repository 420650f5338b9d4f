"""Where the real servers are, and what happens to tests when they are not: skipped at home, failed in CI.

An address comes from the environment or, when that says nothing, from ``.services.env`` in the checkout, which
``python3 -m scripts.services up`` writes. Nothing here imports Django: the settings for tests import it.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

CHECKOUT = Path(__file__).resolve().parent.parent

_VARIABLES = {
    "kafka": "SMARTFLOW_KAFKA_SERVERS",
    "mariadb": "SMARTFLOW_MARIADB_URL",
    "mysql": "SMARTFLOW_MYSQL_URL",
    "postgres": "SMARTFLOW_POSTGRES_URL",
}
_DEFAULT_PORTS = {"kafka": 9092, "mariadb": 3306, "mysql": 3306, "postgres": 5432}
_CONNECT_TIMEOUT_S = 2.0


def kafka_servers() -> str | None:
    """Return ``host:port``, several joined by commas; None when nobody says or nobody answers there."""
    return _reachable("kafka")


def mariadb_url() -> str | None:
    """Return the URL of a MariaDB that answers, or None."""
    return _reachable("mariadb")


def mysql_url() -> str | None:
    """Return the URL of a MySQL that answers, or None."""
    return _reachable("mysql")


def postgres_url() -> str | None:
    """Return the URL of a PostgreSQL that answers, or None."""
    return _reachable("postgres")


def require(name: str) -> str:
    """Return the address of ``kafka``, ``mariadb``, ``mysql`` or ``postgres``; skip the test without it, fail it in CI.

    With ``MYSQL=optional`` a MySQL that is not set up is no failure in CI either.
    """
    import pytest

    address = _reachable(name)
    if address is not None:
        return address
    variable, given = _VARIABLES[name], _address(name)
    if given:
        reason = f"{name} does not answer at {_without_password(given)} ({variable})"
    else:
        reason = f"{name} is not set up: run `python3 -m scripts.services up {name}`, or set {variable}"
    if in_ci() and not (name == "mysql" and not given and os.environ.get("MYSQL") == "optional"):
        raise pytest.fail.Exception(reason, pytrace=False)
    raise pytest.skip.Exception(reason)


def in_ci() -> bool:
    """Say whether a missing server is a failure."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@cache
def _reachable(name: str) -> str | None:
    """Ask once a run: a test that takes a server away must not have the next ones skipped."""
    address = _address(name)
    return address if address and any(_answers(name, one) for one in address.split(",")) else None


def _address(name: str) -> str | None:
    variable = _VARIABLES[name]
    return os.environ.get(variable) or _services_file().get(variable)


def _without_password(address: str) -> str:
    return urlsplit(address).netloc.rpartition("@")[2] if "://" in address else address


@cache
def _services_file() -> dict[str, str]:
    try:
        lines = (CHECKOUT / ".services.env").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def _answers(name: str, address: str) -> bool:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname, parts.port or _DEFAULT_PORTS[name]), _CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
