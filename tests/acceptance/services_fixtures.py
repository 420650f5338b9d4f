"""Gives tests installations of the five services.

A module that uses it says ``pytest_plugins = ("tests.acceptance.services_fixtures",)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.services_harness import SMALL_BATCHES, ServicesInstallation

InstallServices = Callable[..., ServicesInstallation]


@pytest.fixture
def install_services(install: Install, usual_database: str) -> Iterator[InstallServices]:
    """Give a function that makes an installation: ``install_services(database="mariadb", broker="kafka", options={})``.

    Where it is told no database it is on MariaDB or MySQL.
    """
    made: list[ServicesInstallation] = []

    def make(*, database: str = usual_database, broker: str = "kafka", **more: Any) -> ServicesInstallation:
        base = install(database=database, broker=broker)
        made.append(ServicesInstallation(base, **{"options": SMALL_BATCHES, **more}))
        return made[-1]

    yield make
    for installation in made:
        installation.dispose()
