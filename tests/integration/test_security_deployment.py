"""What docs/security.md says of production is enough, and no less than that is: checked by Django's own checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from django.test import Client

from tests.integration.admin_rows import MESSAGES, pages, secret_rows
from tests.services import CHECKOUT

pytest_plugins = ("tests.integration.admin_fixtures",)

DOCUMENT: Final = (CHECKOUT / "docs" / "security.md").read_text(encoding="utf-8")
KEY: Final = "k3y-abcdefghijklmnopqrstuvwxyz-0123456789-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLEAN: Final = ["check", "--deploy", "--fail-level", "WARNING"]


def documented(folder: Path) -> dict[str, str]:
    """Return the environment that the document gives, its files in ``folder``."""
    block = re.search(r"## Production.*?```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block
    found = dict(re.findall(r"^([A-Z_]+)=(.*)$", block[1], re.MULTILINE))
    assert "SECRET_KEY" in found
    found["SECRET_KEY"] = KEY
    for name, value in found.items():
        if value.startswith("/etc/smartflow/"):
            (folder / Path(value).name).write_text("")
            found[name] = str(folder / Path(value).name)
    return found


def manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    fixed = {"PATH": os.environ["PATH"], "READ_DOT_ENV": "false", "DJANGO_SETTINGS_MODULE": "smartflow.settings"}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=CHECKOUT,
        env=fixed | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_documented_production_is_clean(tmp_path: Path) -> None:
    done = manage(documented(tmp_path), *CLEAN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no issues" in done.stdout


@pytest.mark.parametrize(
    ("without", "instead", "found"),
    [
        (
            ("SECURE_HSTS_INCLUDE_SUBDOMAINS", "SECURE_HSTS_PRELOAD", "NOTIFICATION_SITE_URL"),
            {"SECRET_KEY": "too-short", "DEBUG": "true"},
            ("security.W005", "security.W021", "notification.W001", "security.W009", "security.W018"),
        ),
        (("HTTPS",), {}, ("security.W004", "security.W008", "security.W012", "security.W016")),
        (("SECRET_KEY",), {}, ("SECRET_KEY is not set",)),
        ((), {"SECRET_KEY": "insecure-and-for-development-only"}, ("SECRET_KEY is not set",)),
    ],
    ids=["careless", "no https", "no key", "key of development"],
)
def test_each_part_of_production_is_asked_for(
    tmp_path: Path, without: tuple[str, ...], instead: dict[str, str], found: tuple[str, ...]
) -> None:
    given = {name: value for name, value in documented(tmp_path).items() if name not in without}
    done = manage(given | instead, *CLEAN)
    assert done.returncode == 1
    assert [name for name in found if name not in done.stderr] == []


SITE: Final = """
from django.conf import settings
from django.test import Client

client = Client(SERVER_NAME="outbox.example.com")
plain = client.get("/admin/login/")
assert (plain.status_code, plain["Location"]) == (301, "https://outbox.example.com/admin/login/"), plain
proxied = client.get("/admin/login/", headers={"x-forwarded-proto": "https"})
assert proxied.status_code == 200, "BEHIND_PROXY"
page = client.get("/admin/login/", secure=True)
assert page["Strict-Transport-Security"].startswith("max-age="), page.headers
assert page["X-Frame-Options"] == "DENY"
assert page["X-Content-Type-Options"] == "nosniff"
assert page["Referrer-Policy"] == "same-origin"
assert page["Cross-Origin-Opener-Policy"] == "same-origin"
cookie = page.cookies["csrftoken"]
assert cookie["secure"] and cookie["samesite"] == "Lax", cookie
assert settings.SESSION_COOKIE_SECURE and settings.SESSION_COOKIE_HTTPONLY
assert settings.SESSION_COOKIE_AGE <= 24 * 3600 and settings.SESSION_EXPIRE_AT_BROWSER_CLOSE
assert not settings.DEBUG and not settings.USE_X_FORWARDED_HOST
assert Client(SERVER_NAME="elsewhere.example.com").get("/admin/login/", secure=True).status_code == 400
forged = Client(SERVER_NAME="outbox.example.com", enforce_csrf_checks=True)
assert forged.post("/admin/login/", secure=True, headers={"origin": "https://elsewhere.example.com"}).status_code == 403
print("all well")
"""


def test_documented_production_sends_its_headers_and_cookies(tmp_path: Path) -> None:
    done = manage(documented(tmp_path), "shell", "--no-imports", "-c", SITE)
    assert "all well" in done.stdout, done.stderr[-2000:]


def test_forwarded_header_is_believed_behind_a_proxy_only(tmp_path: Path) -> None:
    done = manage(documented(tmp_path) | {"BEHIND_PROXY": "false"}, "shell", "--no-imports", "-c", SITE)
    assert "BEHIND_PROXY" in done.stderr


# --- the pages -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_every_form_wants_the_token_of_this_site(root: Client) -> None:
    keys = secret_rows()
    stranger = Client(enforce_csrf_checks=True)
    stranger.cookies = root.cookies
    assert stranger.get(MESSAGES).status_code == 200
    for page in pages():
        answer: Any = stranger.post(page.url(keys.get(page.model)), {"reason": "x", "do": "pause", "post": "yes"})
        assert answer.status_code == 403, page.full_name
        assert answer["X-Frame-Options"] == "DENY", page.full_name


@pytest.mark.django_db
@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "https:evil.example"],
)
def test_signing_in_leads_to_this_site(client: Client, django_user_model: Any, target: str) -> None:
    django_user_model.objects.create_superuser("anna", password="secret")
    form = {"username": "anna", "password": "secret", "next": target}
    for url in ("/admin/login/", f"/admin/login/?next={target}"):
        assert client.post(url, form)["Location"] == "/admin/"
        client.logout()
