"""The servers we know: their names, variables, ports and addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.services.errors import ServicesError

USER = PASSWORD = DATABASE = "smartflow"


@dataclass(frozen=True)
class Service:
    """One server, whoever runs it.

    `ports` are the preferred ones; `address` is filled in with those that are really used.
    """

    name: str
    variable: str
    ports: Mapping[str, int]
    address: str
    compose_service: str
    compose_variable: str

    def address_at(self, ports: Mapping[str, int]) -> str:
        """Give the value of the service's variable."""
        return self.address.format(**ports)


MARIADB = Service(
    name="mariadb",
    variable="SMARTFLOW_MARIADB_URL",
    ports={"client": 13306},
    address=f"mysql://{USER}:{PASSWORD}@127.0.0.1:{{client}}/{DATABASE}",
    compose_service="mariadb",
    compose_variable="MARIADB_PORT",
)
MYSQL = Service(
    name="mysql",
    variable="SMARTFLOW_MYSQL_URL",
    ports={"client": 13307},
    address=f"mysql://{USER}:{PASSWORD}@127.0.0.1:{{client}}/{DATABASE}",
    compose_service="mysql",
    compose_variable="MYSQL_PORT",
)
POSTGRES = Service(
    name="postgres",
    variable="SMARTFLOW_POSTGRES_URL",
    ports={"client": 15432},
    address=f"postgres://{USER}:{PASSWORD}@127.0.0.1:{{client}}/{DATABASE}",
    compose_service="postgres",
    compose_variable="POSTGRES_PORT",
)
KAFKA = Service(
    name="kafka",
    variable="SMARTFLOW_KAFKA_SERVERS",
    ports={"client": 19092, "controller": 19093},
    address="127.0.0.1:{client}",
    compose_service="kafka",
    compose_variable="KAFKA_PORT",
)

SERVICES: Mapping[str, Service] = {service.name: service for service in (MARIADB, MYSQL, POSTGRES, KAFKA)}


def find(name: str) -> Service:
    """Give the service of this name."""
    try:
        return SERVICES[name]
    except KeyError:
        raise ServicesError(f"There is no service {name!r}; there are: {', '.join(SERVICES)}.") from None
