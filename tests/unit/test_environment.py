"""Every variable of the environment is one of its values, or an error that names it, the value and the remedy."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.exceptions import ImproperlyConfigured

from smartflow.database_url import database
from smartflow.environment import Environment, read_dot_env
from tests.services import CHECKOUT
from tests.unit.test_configuration_docs import EXAMPLE, VARIABLES

HUSH: Final = "correct-horse-battery"
KAFKA: Final = {"KAFKA_BOOTSTRAP_SERVERS": "a:9092"}
FLAGS: Final = (
    "READ_DOT_ENV",
    "DEBUG",
    "HTTPS",
    "SECURE_HSTS_INCLUDE_SUBDOMAINS",
    "SECURE_HSTS_PRELOAD",
    "BEHIND_PROXY",
    "KAFKA_ENABLED",
    "MEMORY_ENABLED",
    "SHARED_TABLE",
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives the settings which an environment makes."""
    for name in [*os.environ]:
        if name in VARIABLES or name.startswith("KAFKA_"):
            monkeypatch.delenv(name)

    def settings(**variables: str) -> dict[str, Any]:
        for name, value in {"READ_DOT_ENV": "false", "SECRET_KEY": "x" * 50, **variables}.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(CHECKOUT / "smartflow" / "settings.py"))

    return settings


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        *((name, value, "use true or false") for name in FLAGS for value in ("maybe", "", "2", "tru", "none")),
        ("SECURE_HSTS_SECONDS", "abc", "a whole number of 0 to"),
        ("SECURE_HSTS_SECONDS", "-1", "a whole number of 0 to"),
        ("SECURE_HSTS_SECONDS", "1.5", "a whole number of 0 to"),
        ("SECURE_HSTS_SECONDS", "9" * 30, "a whole number of 0 to"),
        ("SECURE_HSTS_SECONDS", "", "a whole number of 0 to"),
        ("ALLOWED_HOSTS", "https://example.com", "host names without scheme"),
        ("ALLOWED_HOSTS", "example.com:8000", "host names without scheme"),
        ("ALLOWED_HOSTS", ",", "joined by commas"),
        ("CSRF_TRUSTED_ORIGINS", "example.com", "origins such as https://"),
        ("CSRF_TRUSTED_ORIGINS", "https://example.com/path", "origins such as https://"),
        ("TIME_ZONE", "Mars/Base", "time zone database"),
        ("TIME_ZONE", "", "time zone database"),
        ("TIME_ZONE", "../etc/passwd", "time zone database"),
        ("TIME_ZONE", "Europe", "time zone database"),
        ("KAFKA_BOOTSTRAP_SERVERS", " , ", "joined by commas"),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SLL", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-521", "SCRAM-SHA-512"),
        ("NOTIFICATION_TIMEOUT_SECONDS", "5 minutes", "without a unit"),
        ("NOTIFICATION_TIMEOUT_SECONDS", "1e3", "without a unit"),
        ("NOTIFICATION_TIMEOUT_SECONDS", "inf", "a number of"),
        ("NOTIFICATION_TIMEOUT_SECONDS", "nan", "a number of"),
        ("NOTIFICATION_TIMEOUT_SECONDS", "0", "a number of"),
        ("NOTIFICATION_LEASE_SECONDS", "1e9", "a number of"),
        ("LOG_LEVEL", "INF", "DEBUG, INFO, WARNING"),
        ("LOG_LEVEL", "", "DEBUG, INFO, WARNING"),
        ("KAFKA_LOG_LEVEL", "debug", "DEBUG, INFO, WARNING"),
    ],
)
def test_value_that_is_none_is_named_with_its_variable_and_a_remedy(
    read: Any, name: str, value: str, remedy: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read(**{**KAFKA, name: value})
    said = str(caught.value)
    assert said.startswith(f"{name} is {value!r}; ")
    assert remedy in said


@pytest.mark.parametrize("name", ["KAFKA_SASL_MECHANISMS", "KAFKA_SSL_CA_FILE", "KAFKA_SECURITY_PROTOCOLL"])
def test_misspelt_variable_of_security_is_refused(read: Any, name: str) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=f"^{name} is no setting of this project.*KAFKA_SSL_CAFILE"
    ) as caught:
        read(**KAFKA, **{name: HUSH})
    assert HUSH not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"KAFKA_ENABLED": "true"}, "KAFKA_ENABLED is set, and KAFKA_BOOTSTRAP_SERVERS is not"),
        ({"KAFKA_SASL_PASSWORD": HUSH}, "KAFKA_SASL_PASSWORD is set, and KAFKA_BOOTSTRAP_SERVERS is not"),
        (
            {**KAFKA, "KAFKA_SECURITY_PROTOCOL": "SSL", "OUTBOX": '{"BROKER": {"BACKEND": "table"}}'},
            "KAFKA_SECURITY_PROTOCOL is set, and OUTBOX has a BROKER of its own",
        ),
    ],
)
def test_variable_of_kafka_that_nobody_would_read_is_refused(read: Any, variables: dict[str, str], named: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"^{named}") as caught:
        read(**variables)
    assert HUSH not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "must be a JSON object, not a list"),
        ("null", "must be a JSON object, not a NoneType"),
        ('{"RETRY_JITTER": NaN}', "NaN is no number of JSON"),
        ('{"RETRY_JITTER": -Infinity}', "-Infinity is no number of JSON"),
        ('{"RELAY": {}, "RELAY": {"BATCH_SIZE": 5}}', "the key 'RELAY' twice"),
        ('{"BROKER": {"OPTIONS": {"a": "' + HUSH + '", "a": 1}}}', "the key 'a' twice"),
        ('{"a":' * 100_000, "nested too deep"),
    ],
)
def test_outbox_that_is_no_json_object_is_refused_without_its_values(read: Any, value: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"^OUTBOX .*{said}.*remove the variable") as caught:
        read(OUTBOX=value)
    assert HUSH not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "is_on"),
    [("true", True), ("True", True), ("1", True), (" on ", True), ("no", False), ("0", False), ("OFF", False)],
)
def test_truth_is_said_in_the_usual_words(read: Any, value: str, is_on: bool) -> None:
    found = read(**KAFKA, KAFKA_ENABLED=value)
    assert (found["KAFKA_ENABLED"], found["OUTBOX"]["ENABLED"]) == (is_on, is_on)


def test_variables_that_are_not_set_make_the_documented_defaults(read: Any) -> None:
    found = read()
    assert (found["DEBUG"], found["KAFKA_ENABLED"], found["OUTBOX"]["ENABLED"]) == (False, False, True)
    assert found["OUTBOX"]["BROKER"] == {"BACKEND": "table"}
    assert (found["LOGGING"]["root"]["level"], found["TIME_ZONE"]) == ("INFO", "UTC")
    assert found["NOTIFICATION"]["TIMEOUT_SECONDS"] == 5.0


def test_values_that_are_given_reach_the_settings(read: Any) -> None:
    found = read(
        KAFKA_BOOTSTRAP_SERVERS="a:1, b:2",
        KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        KAFKA_SASL_MECHANISM="SCRAM-SHA-512",
        ALLOWED_HOSTS="example.com, .example.org,[::1],*",
        CSRF_TRUSTED_ORIGINS="https://example.com:8443",
        NOTIFICATION_SECRET_KEYS=f" {HUSH},$other ",
        OUTBOX='{"NAMESPACE": "shop"}',
        LOG_LEVEL="ERROR",
        TIME_ZONE="Europe/Berlin",
        NOTIFICATION_TIMEOUT_SECONDS="2.5",
        SECURE_HSTS_SECONDS="60",
    )
    assert found["OUTBOX"]["BROKER"]["OPTIONS"] == {
        "bootstrap_servers": ["a:1", "b:2"],
        "common": {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512"},
    }
    assert found["OUTBOX"]["NAMESPACE"] == "shop"
    assert found["ALLOWED_HOSTS"] == ["example.com", ".example.org", "[::1]", "*"]
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://example.com:8443"]
    assert found["NOTIFICATION"]["SECRET_KEYS"] == [f" {HUSH}", "$other "], "a blank is a part of a secret"
    assert (found["NOTIFICATION"]["TIMEOUT_SECONDS"], found["SECURE_HSTS_SECONDS"]) == (2.5, 60)
    assert (found["LOGGING"]["root"]["level"], found["TIME_ZONE"]) == ("ERROR", "Europe/Berlin")


def test_every_flag_of_the_settings_is_tested_here() -> None:
    source = (CHECKOUT / "smartflow" / "settings.py").read_text()
    assert {name for name in VARIABLES if f'env.flag("{name}"' in source} == set(FLAGS)


def test_example_is_read_without_a_fault(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text(EXAMPLE)
    for name in ("DEBUG", "ALLOWED_HOSTS"):
        monkeypatch.setenv(name, "kept by the fixture")
        monkeypatch.delenv(name)
    read_dot_env(file)
    assert read()["ALLOWED_HOSTS"] == ["localhost", "127.0.0.1"]


# --- the file .env ---------------------------------------------------------------------------------------------------


def test_line_of_the_file_that_would_be_dropped_is_an_error(tmp_path: Path) -> None:
    """With blanks around the sign it was left out with a warning, and the broker was spoken to in the clear."""
    file = tmp_path / ".env"
    file.write_text(f"# Kafka\n\n \t\n  # more\nKAFKA_SECURITY_PROTOCOL = SASL_SSL\n{HUSH}\n  DEBUG=false\n")
    with pytest.raises(ImproperlyConfigured, match="line 5, 6, 7") as caught:
        read_dot_env(file)
    assert HUSH not in str(caught.value)


def test_remarks_and_empty_lines_are_no_settings(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# a\n\n   \n  # indented\n")
    read_dot_env(file)


def test_file_that_is_not_there_has_no_variables(tmp_path: Path) -> None:
    read_dot_env(tmp_path / "nothing")


def test_file_that_is_no_utf8_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"A=\xff\n")
    with pytest.raises(ImproperlyConfigured, match="UTF-8"):
        read_dot_env(file)


# --- DATABASE_URL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("mysql://u:p@h/x?ssl_mode=VERIFY_IDENTIY", "'ssl_mode' is 'VERIFY_IDENTIY'; choose one of DISABLED"),
        ("mysql://u:p@h/x?ssl_mode=required", "'ssl_mode' is 'required'; choose one of DISABLED"),
        ("mysql://u:p@h/x?ssl_ca=", "'ssl_ca' is empty"),
        ("mysql://u:p@h/x?ssl_ca", "'ssl_ca' is empty"),
        ("mysql://u:p@h/x?ssl_ca=/ca.pem&ssl_mode=PREFERRED", "with 'ssl_ca' the option 'ssl_mode' is 'PREFERRED'"),
        ("mysql://u:p@h/x?ssl_cert=/c.pem&ssl_mode=DISABLED", "with 'ssl_cert' the option 'ssl_mode' is 'DISABLED'"),
        ("mysql://u:p@h/x?ssl_mode=VERIFY_CA&ssl_mode=DISABLED", "'ssl_mode' is there twice"),
        ("postgres://u:p@h/x?sslmode=verify_full", "'sslmode' is 'verify_full'; choose one of disable, allow"),
        ("postgres://u:p@h/x?sslrootcert=/ca.pem&sslmode=prefer", "with 'sslrootcert' the option 'sslmode'"),
        ("mysql://u:p@h/x?atomic_requests=maybe", "'atomic_requests' is 'maybe'; use true or false"),
        ("mysql://u:p@h/x?autocommit=of", "'autocommit' is 'of'; use true or false"),
        ("mysql://u:p@h/x?conn_max_age=long", "'conn_max_age' is 'long'; give seconds"),
        ("mysql://u:p@h/x?conn_max_age=-1", "'conn_max_age' is '-1'; give seconds"),
    ],
)
def test_option_of_the_database_that_is_none_of_its_values_is_refused(query: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"^DATABASE_URL: .*{said}") as caught:
        database(query)
    assert "u:p@h" not in str(caught.value)


def test_flags_of_the_database_are_read_as_such() -> None:
    found = database("mysql://u:p@h/x?atomic_requests=true&autocommit=false&conn_max_age=60&conn_health_checks=True")
    assert (found["ATOMIC_REQUESTS"], found["AUTOCOMMIT"]) == (True, False), "the word false was taken for true"
    assert (found["CONN_MAX_AGE"], found["CONN_HEALTH_CHECKS"]) == (60, True)


def test_certificates_of_postgresql_are_checked() -> None:
    assert database("postgres://u:p@h/x?sslrootcert=/ca.pem")["OPTIONS"]["sslmode"] == "verify-full"
    assert database("postgres://u:p@h/x?sslrootcert=/ca.pem&sslmode=verify-ca")["OPTIONS"]["sslmode"] == "verify-ca"
    assert "sslmode" not in database("postgres://u:p@h/x")["OPTIONS"]


def test_text_is_taken_as_it_is() -> None:
    assert Environment({"A": f"${HUSH} "}).text("A") == f"${HUSH} "
