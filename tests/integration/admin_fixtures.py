"""People with permissions, and services on each database in turn.

A module that uses these says ``pytest_plugins = ("tests.integration.admin_fixtures",)``. Everything happens inside
the transactions that ``pytest.mark.django_db`` rolls back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from outbox import signals
from tests.integration.admin_rows import DATABASES, SERVICES, SignIn
from tests.services import require

_names = itertools.count(1)


@pytest.fixture(params=("default", "mariadb", "mysql", "postgres"))
def outbox_alias(request: pytest.FixtureRequest, settings: Any) -> str:
    """Make every service live on each database in turn."""
    alias: str = request.param
    if alias not in DATABASES:
        require(alias)
    settings.OUTBOX = {
        "NAMESPACE": "smartflow",
        "SERVICES": {service: {"DATABASE": alias} for service in SERVICES},
    }
    return alias


@pytest.fixture
def sign_in(db: None) -> SignIn:
    """Return a function that signs in a member of staff who holds the named permissions."""

    def go(*permissions: str, username: str = "", enforce_csrf_checks: bool = False) -> Client:
        user = User.objects.create_user(username or f"user-{next(_names)}", is_staff=True)
        for name in permissions:
            app, codename = name.split(".")
            user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
        return _client(user, enforce_csrf_checks=enforce_csrf_checks)

    return go


@pytest.fixture
def root(db: None) -> Client:
    """Sign in a superuser called ``root``."""
    return _client(User.objects.create_superuser("root"))


@pytest.fixture
def replayed() -> Iterator[list[dict[str, Any]]]:
    """Collect what the signal ``replayed`` tells."""
    told: list[dict[str, Any]] = []

    def listen(sender: str, **facts: Any) -> None:
        told.append({"service": sender, "ids": facts["ids"], "by": facts["by"]})

    signals.replayed.connect(listen)
    yield told
    signals.replayed.disconnect(listen)


def _client(user: User, *, enforce_csrf_checks: bool = False) -> Client:
    client = Client(enforce_csrf_checks=enforce_csrf_checks)
    client.force_login(user)
    return client
