"""docs/configuration.md and .env.example name everything that can be configured, with its real default."""

from __future__ import annotations

import re

import msgspec
import pytest

from outbox import conf
from outbox.brokers.kafka.options import KafkaOptions
from tests.services import CHECKOUT

DOCUMENT = (CHECKOUT / "docs" / "configuration.md").read_text()
EXAMPLE = (CHECKOUT / ".env.example").read_text()
VARIABLES = set(re.findall(r'\benv\.\w+\(\s*"([A-Z_]+)"', (CHECKOUT / "smartflow" / "settings.py").read_text()))


def section(title: str) -> str:
    """Return what stands between a heading and the next one of its rank or above."""
    rank = re.search(rf"^(#+) {re.escape(title)}$", DOCUMENT, re.MULTILINE)
    assert rank, f"no heading {title!r}"
    rest = DOCUMENT[rank.end() :]
    end = re.search(rf"^#{{1,{len(rank[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def documented(text: str) -> dict[str, str]:
    """Return the default of each name in the tables of a section."""
    found = {}
    for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = default.strip().strip("`")
    return found


def test_every_variable_is_documented_and_in_the_example_and_no_other() -> None:
    assert set(documented(section("Environment variables"))) == VARIABLES
    assert set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == VARIABLES


def test_every_variable_of_the_example_has_a_comment() -> None:
    lines = EXAMPLE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?[A-Z_]+=", line):
            assert lines[number - 1].startswith("# "), line


@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("settings.OUTBOX", conf.OutboxSettings),
        ("SERVICES", conf.ServiceOptions),
        ("EVENTS", conf.EventOptions),
        ("RELAY", conf.RelayOptions),
        ("CONSUMER", conf.ConsumerOptions),
        ("LEASES", conf.LeaseOptions),
    ],
)
def test_every_key_is_documented_with_its_default(title: str, options: type[msgspec.Struct]) -> None:
    text = section(title)
    if title == "settings.OUTBOX":
        text = text[: text.index("\n### ")]
    found = documented(text)
    fields = {field.encode_name: field for field in msgspec.structs.fields(options)}
    assert set(found) == set(fields)
    for name, field in fields.items():
        if isinstance(field.default, (bool, int, float)):
            assert found[name] == str(field.default), name


def test_every_option_of_the_kafka_broker_is_documented_with_its_default() -> None:
    found = documented(section("BROKER"))
    fields = {field.encode_name: field for field in msgspec.structs.fields(KafkaOptions)}
    assert set(found) == set(fields) | {"BACKEND", "OPTIONS"}
    for name, field in fields.items():
        if isinstance(field.default, (int, float)):
            assert found[name] == str(field.default), name


def test_addresses_of_the_example_lead_nowhere() -> None:
    """Somebody who copies the file unchanged talks to nobody but himself."""
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert set(given) == {"DEBUG", "ALLOWED_HOSTS"}
    assert given["DEBUG"] == "false"
