"""Makes a Django database of an address, with what the outbox needs of its kind."""

from __future__ import annotations

import warnings
from typing import Any, Final
from urllib.parse import parse_qsl

import environ
from django.core.exceptions import ImproperlyConfigured

from smartflow.environment import refused, truth

_FLAGS: Final = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS")
_MODES: Final = {
    "mysql": ("ssl_mode", ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")),
    "postgresql": ("sslmode", ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")),
}
"""By the end of the engine's name: the option that says how much TLS there has to be, and its values."""
_IN_THE_CLEAR: Final = frozenset({"DISABLED", "PREFERRED", "disable", "allow", "prefer"})
_CERTIFICATES: Final = {"mysql": ("ssl_ca", "ssl_cert", "ssl_key"), "postgresql": ("sslrootcert", "sslcert", "sslkey")}


def database(url: str) -> dict[str, Any]:
    """Return the database at ``url``.

    :raises ImproperlyConfigured: it cannot be read; no part of its address is repeated, as each may be one of the
        password. Or an option of it is none of its values, or would take back the TLS that another asks for.
    """
    config = _parsed(url)
    kind = config["ENGINE"].rpartition(".")[2]
    options = config.setdefault("OPTIONS", {})
    _check_options(url, config, kind)
    if kind == "mysql":
        # READ COMMITTED is Django's default and what the outbox is built for: see docs/performance.md.
        options.setdefault("isolation_level", "read committed")
        options.setdefault("charset", "utf8mb4")
        options.setdefault("connect_timeout", 5)
        if tls := {name: options.pop(f"ssl_{name}") for name in ("ca", "cert", "key") if f"ssl_{name}" in options}:
            # The driver's own default would go on in the clear where the server has no TLS, and trust any server.
            options["ssl"] = tls
            options.setdefault("ssl_mode", "VERIFY_IDENTITY")
    elif kind == "sqlite3":
        # One writer at a time: take the lock at BEGIN, or a transaction that reads first may fail when it writes.
        options.setdefault("transaction_mode", "IMMEDIATE")
        options.setdefault("timeout", 20)
        options.setdefault("init_command", "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
    elif kind == "postgresql":
        options.setdefault("connect_timeout", 5)
        if options.keys() & set(_CERTIFICATES[kind]):
            options.setdefault("sslmode", "verify-full")  # libpq's default is as that of MySQL's driver
    return config


def _parsed(url: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parser's warnings repeat the address
        try:
            config: dict[str, Any] = environ.Env.db_url_config(url)
        except (ValueError, Warning):
            config = {}
    is_file = config.get("ENGINE", "").endswith("sqlite3")
    if "." not in config.get("ENGINE", "") or ("@" in config["NAME"] and not is_file):
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read. It has the form mysql://user:password@host:port/name, postgres://… or "
            "sqlite:///path; characters such as @ : / ? # % of a password are quoted (@ is %40)."
        ) from None
    return config


def _check_options(url: str, config: dict[str, Any], kind: str) -> None:
    """Check what follows the ``?``: the parser leaves out what is empty and takes every word for true."""
    seen: set[str] = set()
    for name, value in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if not value or name in seen:
            fault = "is there twice" if name in seen else "is empty"
            raise ImproperlyConfigured(f"DATABASE_URL: the option {name!r} {fault}; give it one value, or remove it.")
        seen.add(name)
    for name in _FLAGS:
        if isinstance(config.get(name), str):
            if (flag := truth(config[name])) is None:
                raise refused(f"DATABASE_URL: the option {name.lower()!r}", config[name], "use true or false")
            config[name] = flag
    age_s = config.get("CONN_MAX_AGE", 0)
    if age_s is not None and (isinstance(age_s, bool) or not isinstance(age_s, int) or age_s < 0):
        raise refused("DATABASE_URL: the option 'conn_max_age'", str(age_s), "give seconds, 0 or more, or None")
    if kind in _MODES:
        _check_tls(config["OPTIONS"], kind)


def _check_tls(options: dict[str, Any], kind: str) -> None:
    name, modes = _MODES[kind]
    mode = options.get(name)
    if mode is not None and mode not in modes:
        raise refused(f"DATABASE_URL: the option {name!r}", str(mode), f"choose one of {', '.join(modes)}")
    given = [option for option in _CERTIFICATES[kind] if option in options]
    if given and mode in _IN_THE_CLEAR:
        raise refused(
            f"DATABASE_URL: with {given[0]!r} the option {name!r}",
            str(mode),
            f"the connection may be in the clear; choose {modes[-1]}, or remove {given[0]!r}",
        )
