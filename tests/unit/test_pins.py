"""What is tested is what runs: the lists of packages agree."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def pins(name: str) -> dict[str, str]:
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[[^\]]+\])?==(\S+)", text, re.MULTILINE))


def test_development_and_demo_have_the_versions_of_production() -> None:
    production = pins("requirements.txt")
    assert "django" in production
    assert production.items() <= pins("requirements-dev.txt").items()
    assert pins("requirements-demo.txt").items() == production.items() - {("mysqlclient", production["mysqlclient"])}
