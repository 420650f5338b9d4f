"""Passwords and keys are in nothing that is said: real commands fail in every way there is, and log all they can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import RequestFactory
from django.views.debug import technical_500_response

from outbox.management.commands import run_outbox
from smartflow.database_url import database
from tests.services import CHECKOUT, mariadb_url, mysql_url, require

DATABASE: Final = "Sw0rdfishDatabase"
KAFKA: Final = "Sw0rdfishKafka"
KEY: Final = "Sw0rdfishKey0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
SEAL: Final = "Sw0rdfishSeal"
CORE: Final = "w0rdfish"
"""What all of them hold, so that half of one is found as well."""

NOWHERE: Final = "127.0.0.1:1"


def environment(**more: str) -> dict[str, str]:
    """Return an environment with a secret in every place that takes one, and all logs on."""
    return {
        "PATH": os.environ["PATH"],
        "DJANGO_SETTINGS_MODULE": "smartflow.settings",
        "READ_DOT_ENV": "false",
        "LOG_LEVEL": "DEBUG",
        "KAFKA_LOG_LEVEL": "DEBUG",
        "SECRET_KEY": KEY,
        "NOTIFICATION_SECRET_KEYS": SEAL,
        "DATABASE_URL": f"postgres://outbox:{DATABASE}@{NOWHERE}/outbox",
        **more,
    }


def kafka(**options: Any) -> str:
    """Return ``OUTBOX`` with a broker that is nowhere, its password, and ``options``."""
    common = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "outbox",
        "sasl_plain_password": KAFKA,
        **options.pop("common", {}),
    }
    given = {"bootstrap_servers": NOWHERE, "request_timeout_seconds": 1, "common": common, **options}
    return json.dumps({"BROKER": {"BACKEND": "kafka", "OPTIONS": given}})


def wrong_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{DATABASE}@{parts.netloc.rpartition('@')[2]}"))


@dataclass(frozen=True, slots=True)
class Case:
    """A command that fails, and what it says to that."""

    arguments: tuple[str, ...]
    said: str
    environment: dict[str, str] = field(default_factory=dict)


SQLITE: Final = {"DATABASE_URL": "sqlite:///:memory:"}
UNREADABLE: Final = (
    f"mysql://outbox:{DATABASE}:x@host:{DATABASE}/outbox",
    f"mysql://outbox:a/{DATABASE}@host/outbox",
    f"mysql://outbox:12/{DATABASE}@host/outbox",
    f"mysql://outbox:{DATABASE}@[::1/outbox",
    f"//outbox:{DATABASE}@host/outbox",
    f"{DATABASE}:x@host/outbox",
    f"sqlite://outbox:{DATABASE}@host/outbox",
    DATABASE,
)
TIMEOUT: Final = ("--timeout", "30s")
URL_REFUSED: Final = "DATABASE_URL cannot be read"


def cases(mysqls: list[str], postgres: str) -> list[Case]:
    """Return the failures; given are addresses of real servers."""
    refused = {"DATABASE_URL": wrong_password(postgres)}
    return [
        *(
            Case(("outbox_status", *TIMEOUT), "Access denied", environment={"DATABASE_URL": wrong_password(url)})
            for url in mysqls
        ),
        Case(("outbox_status", "--json", *TIMEOUT), "password authentication failed", environment=refused),
        Case(("check", "--database", "default"), "outbox.E081", environment=refused),
        Case(("outbox_prune", "--older-than", "7d"), "database error"),
        Case(("outbox_installation",), "database error"),
        Case(
            ("outbox_status", *TIMEOUT),
            "invalid connection option",
            environment={"DATABASE_URL": f"{postgres}?x={DATABASE}"},
        ),
        Case(("outbox_topics",), NOWHERE, environment=SQLITE | {"OUTBOX": kafka()}),
        Case(
            ("check",), "'common' has no option 'passwort'", environment={"OUTBOX": kafka(common={"passwort": KAFKA})}
        ),
        Case(("check",), "without user or password", environment={"OUTBOX": kafka(bootstrap_servers=f"u:{KAFKA}@h:1")}),
        Case(("check",), "$.partitions", environment={"OUTBOX": kafka(partitions=KAFKA)}),
        Case(("outbox_topics",), "OUTBOX is no JSON", environment={"OUTBOX": kafka()[:-3]}),
        Case(("deliver_notifications", "--once"), "no such table", environment=SQLITE),
        Case(("check",), URL_REFUSED, environment={"DATABASE_URL": UNREADABLE[0]}),
    ]


def run(arguments: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_no_command_says_a_secret_whatever_fails() -> None:
    mysqls = [url for url in (mariadb_url(), mysql_url()) if url]
    failing = cases(mysqls or [require("mariadb")], require("postgres"))
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(
            pool.map(lambda case: run(("manage.py", *case.arguments), environment(**case.environment)), failing)
        )
    for case, done in zip(failing, outcomes, strict=True):
        said = done.stdout + done.stderr
        assert (done.returncode, case.said in said) == (1, True), f"{case}: {said[-2000:]}"
        assert CORE not in said, f"{case}: {said[-2000:]}"


@pytest.mark.parametrize("url", UNREADABLE)
def test_no_part_of_an_address_that_cannot_be_read_is_repeated(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=URL_REFUSED) as refused:
        database(url)
    assert CORE not in "".join(traceback.format_exception(refused.value))


def test_status_of_a_broker_that_is_away_says_no_secret(tmp_path: Path) -> None:
    env = environment(OUTBOX=kafka(), DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}")
    assert run(("manage.py", "migrate"), env).returncode == 0
    for arguments in (("outbox_status",), ("outbox_status", "--json")):
        done = run(("manage.py", *arguments), env)
        assert done.returncode == 0, done.stderr
        assert NOWHERE in done.stdout
        assert CORE not in done.stdout + done.stderr


def test_line_of_the_env_file_that_cannot_be_read_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(f"DEBUG=false\nKAFKA_SASL_PASSWORD = {KAFKA}\n# a remark\n{KAFKA}\n")
    done = run(
        ("-c", f"import pathlib, smartflow.environment as e; e.read_dot_env(pathlib.Path({str(file)!r}))"),
        environment(**SQLITE),
    )
    assert done.returncode == 1
    assert f"{file}: not of the form NAME=value, without blanks around '=': line 2, 4" in done.stderr
    assert CORE not in done.stdout + done.stderr


def test_password_that_begins_with_a_dollar_is_taken_as_it_is() -> None:
    names = ("SECRET_KEY", "KAFKA_SASL_PASSWORD", "NOTIFICATION_SECRET_KEYS")
    env = environment(**SQLITE, KAFKA_BOOTSTRAP_SERVERS=NOWHERE) | dict.fromkeys(names, f"${KAFKA}")
    script = (
        "from smartflow import settings as s; import json; print(json.dumps([s.SECRET_KEY,"
        " s.OUTBOX['BROKER']['OPTIONS']['common']['sasl_plain_password'], *s.NOTIFICATION['SECRET_KEYS']]))"
    )
    done = run(("-c", script), env)
    assert json.loads(done.stdout) == [f"${KAFKA}"] * 3, done.stderr


# --- what a person sees --------------------------------------------------------------------------------------------


def test_page_of_an_error_shows_neither_settings_nor_environment(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The development server puts the environment into the data of each request, and DEBUG shows those."""
    settings.DEBUG = True
    settings.SECRET_KEY = KEY
    settings.OUTBOX = json.loads(kafka())
    settings.NOTIFICATION = {"SECRET_KEYS": [SEAL]}
    monkeypatch.setenv("OUTBOX", kafka())
    monkeypatch.setenv("DATABASE_URL", f"mysql://outbox:{DATABASE}@db/outbox")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", KAFKA)
    request = RequestFactory().get("/admin/", **os.environ)
    for accept in ("text/html", "text/plain"):
        request.META["HTTP_ACCEPT"] = accept
        page = technical_500_response(request, *_raised()).content.decode()
        assert "sasl_plain_password" in page
        assert "DATABASE_URL" in page
        assert CORE not in page


def _raised() -> tuple[type[BaseException], BaseException, TracebackType | None]:
    try:
        raise RuntimeError("something")
    except RuntimeError as error:
        return type(error), error, error.__traceback__


def test_command_lines_of_the_supervised_hold_no_secret(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody on the machine can read them; the environment is for the processes themselves."""
    started: dict[str, list[str]] = {}

    class Supervisor:
        def __init__(self, commands: dict[str, list[str]], **_: Any) -> None:
            started.update(commands)

        def run(self, stop: Any) -> None:
            pass

    monkeypatch.setattr(run_outbox, "Supervisor", Supervisor)
    settings.SECRET_KEY = KEY
    settings.OUTBOX = json.loads(kafka())
    call_command("run_outbox", "agent", create_topics=True, settings="smartflow.settings")
    assert [command[2:] for command in started.values()] == [
        [name, "agent", "--create-topics", "--settings=smartflow.settings"] for name in ("run_relay", "consume")
    ]
    assert CORE not in str(started)
