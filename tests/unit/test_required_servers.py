"""In CI a test whose server is missing fails: green means that it ran."""

from __future__ import annotations

import pytest

from scripts.services import catalog
from tests import services


@pytest.mark.parametrize(
    ("given", "optional", "in_ci", "outcome"),
    [
        ("", "", "true", pytest.fail.Exception),
        ("", "optional", "true", pytest.skip.Exception),
        ("", "", "", pytest.skip.Exception),
        ("mysql://u:p@127.0.0.1:1/x", "optional", "true", pytest.fail.Exception),
    ],
)
def test_tests_without_mysql_fail_in_ci_unless_it_is_optional(
    monkeypatch: pytest.MonkeyPatch, given: str, optional: str, in_ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(catalog.MYSQL.variable, given)
    monkeypatch.setenv("MYSQL", optional)
    monkeypatch.setenv("CI", in_ci)
    monkeypatch.setattr(services, "_services_file", dict)
    monkeypatch.setattr(services, "_reachable", lambda _name: None)

    with pytest.raises(outcome):
        services.require("mysql")
