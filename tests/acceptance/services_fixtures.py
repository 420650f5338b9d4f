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
def install_services(install: Install) -> Iterator[InstallServices]:
    """Give a function that makes an installation on MariaDB or MySQL and Kafka: ``install_services(options={...})``."""
    made: list[ServicesInstallation] = []

    def make(**more: Any) -> ServicesInstallation:
        made.append(ServicesInstallation(install(), **{"options": SMALL_BATCHES, **more}))
        return made[-1]

    yield make
    for installation in made:
        installation.dispose()
