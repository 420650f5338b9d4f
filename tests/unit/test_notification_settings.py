"""``settings.NOTIFICATION`` and its checks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent_events.notification.checks import check_deployment, check_settings
from agent_events.notification.conf import notification_settings
from outbox.exceptions import ConfigurationError


def test_defaults_are_five_seconds_and_a_lease_of_a_minute(settings: Any) -> None:
    settings.NOTIFICATION = {}
    configured = notification_settings()
    assert (configured.timeout, configured.lease) == (timedelta(seconds=5), timedelta(minutes=1))
    assert configured.allowed_hosts == ()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"TIMEOUT_SECONDS": 0}, "TIMEOUT_SECONDS"),
        ({"LEASE_SECONDS": "long"}, "LEASE_SECONDS"),
        ({"LEASE_SECONDS": 9.0, "TIMEOUT_SECONDS": 5.0}, "LEASE_SECONDS"),
        ({"SITE_URL": "smartflow.example"}, "SITE_URL"),
        ({"SITE_URL": "javascript:alert(1)"}, "SITE_URL"),
        ({"SITE_URL": "https://x/?a=1"}, "SITE_URL"),
        ({"ALLOWED_HOST": []}, "ALLOWED_HOST"),
        ({"TIMEOUT_SECONDS": float("inf")}, "TIMEOUT_SECONDS"),
        ({"LEASE_SECONDS": 1e12}, "LEASE_SECONDS"),
        ({"SITE_URL": "http://[::1"}, "SITE_URL"),
        ({"SITE_URL": "http://a:b"}, "SITE_URL"),
        ({"SITE_URL": "http://a:99999"}, "SITE_URL"),
        ({"ALLOWED_HOSTS": ["https://hooks.example"]}, "ALLOWED_HOSTS has 'https://hooks.example'"),
        ({"ALLOWED_HOSTS": ["hooks.example/path"]}, "ALLOWED_HOSTS"),
        ({"CA_FILE": "/nowhere/ca.pem"}, "CA_FILE .*/nowhere/ca.pem"),
    ],
)
def test_wrong_setting_is_named_and_fails_the_check(settings: Any, wrong: dict[str, Any], named: str) -> None:
    settings.NOTIFICATION = wrong
    with pytest.raises(ConfigurationError, match=named):
        notification_settings()
    assert [message.id for message in check_settings()] == ["notification.E001"]
    assert check_deployment() == []


def test_text_of_the_settings_does_not_show_the_keys(settings: Any) -> None:
    settings.NOTIFICATION = {"SECRET_KEYS": ["very-secret"]}
    assert "very-secret" not in repr(notification_settings())


def test_deployment_check_warns_of_what_is_for_a_developers_machine(settings: Any) -> None:
    settings.NOTIFICATION = {"SITE_URL": "http://localhost:8000", "ALLOWED_HOSTS": ["127.0.0.1"]}
    assert [message.id for message in check_deployment()] == ["notification.W001", "notification.W002"]
    settings.NOTIFICATION = {"SITE_URL": "https://smartflow.example"}
    assert check_settings() == check_deployment() == []


def test_password_in_the_address_of_the_site_is_not_repeated(settings: Any) -> None:
    settings.NOTIFICATION = {"SITE_URL": "https://user:very-secret@smartflow.example"}
    with pytest.raises(ConfigurationError, match="SITE_URL") as caught:
        notification_settings()
    assert "very-secret" not in str(caught.value)
