"""The settings of the databases that outbox tables live in; connects to none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils.module_loading import import_string

from outbox.checks.declarations import valid_routes
from outbox.checks.options import SETTING, configured
from outbox.routers import ServiceRouter
from outbox.storage.dialects import SUPPORTED_VENDORS

_UTC: Final = frozenset({"UTC", "Etc/UTC", "Etc/UCT", "Etc/Zulu", "Zulu", "UCT"})


def check_databases() -> list[CheckMessage]:
    """Check each alias that a route names, and how the aliases are used together."""
    if configured() is None:
        return []
    services = services_by_alias()
    messages = [*_time_zone_support(), *_router(services), *_atomic_requests(services)]
    for alias, of_alias in services.items():
        messages += _alias(alias, of_alias)
    return messages


def services_by_alias() -> dict[str, list[str]]:
    """Return the services whose tables are on each alias."""
    found: dict[str, list[str]] = {}
    for route in valid_routes().values():
        found.setdefault(route.database, []).append(route.service)
    return found


def vendor_of(alias: str) -> str:
    """Return the vendor of a configured alias, an empty text where its backend cannot be loaded."""
    try:
        return connections[alias].vendor
    except Exception:  # noqa: BLE001 - a missing driver raises ImproperlyConfigured, a broken one anything
        return ""


def _alias(alias: str, services: list[str]) -> Iterator[CheckMessage]:
    named = ", ".join(services)
    if alias not in set(connections):
        yield Error(
            f"the outbox of {named} is routed to database alias {alias!r}, which is not in DATABASES.",
            hint="Add the alias to DATABASES, or correct OUTBOX['SERVICES'][…]['DATABASE'].",
            obj=SETTING,
            id="outbox.E061",
        )
        return
    vendor = vendor_of(alias)
    if vendor not in SUPPORTED_VENDORS:
        yield Error(
            f"the outbox of {named} cannot live in database {alias!r}: "
            + (f"there is no SQL for {vendor!r}." if vendor else "its ENGINE, or the driver of it, cannot be loaded."),
            hint="MySQL, MariaDB, PostgreSQL and SQLite are supported.",
            obj=_where(alias),
            id="outbox.E062",
        )
        return
    config = connections[alias].settings_dict
    yield from _autocommit(alias, config)
    yield from _BY_VENDOR[vendor](alias, config)


def _autocommit(alias: str, config: dict[str, Any]) -> Iterator[CheckMessage]:
    if not config["AUTOCOMMIT"]:
        yield Error(
            "AUTOCOMMIT is off: what relays and consumers write outside transactions would never be committed.",
            hint="Remove 'AUTOCOMMIT': False.",
            obj=_where(alias),
            id="outbox.E063",
        )


def _mysql(alias: str, config: dict[str, Any]) -> Iterator[CheckMessage]:
    level = config["OPTIONS"].get("isolation_level", "read committed")
    if not isinstance(level, str) or level.lower() != "read committed":
        yield Error(
            f"the isolation level is {level!r}; under any other than READ COMMITTED consumers block each other and "
            f"publishers on gap locks.",
            hint="Set OPTIONS['isolation_level'] to 'read committed', which is also Django's default.",
            obj=_where(alias),
            id="outbox.E064",
        )
    yield from _naive_times(alias, config)


def _sqlite(alias: str, config: dict[str, Any]) -> Iterator[CheckMessage]:
    mode = config["OPTIONS"].get("transaction_mode")
    if not isinstance(mode, str) or mode.upper() != "IMMEDIATE":
        yield CheckWarning(
            f"transactions begin {mode or 'DEFERRED'!s}: one that reads first fails with 'database is locked' when it "
            f"writes while another does, without waiting.",
            hint="Set OPTIONS['transaction_mode'] to 'IMMEDIATE'.",
            obj=_where(alias),
            id="outbox.W061",
        )
    yield from _naive_times(alias, config)


def _postgresql(_alias: str, _config: dict[str, Any]) -> Iterator[CheckMessage]:
    """Find nothing: its times carry their zone, and every isolation level works."""
    yield from ()


def _naive_times(alias: str, config: dict[str, Any]) -> Iterator[CheckMessage]:
    zone = config["TIME_ZONE"]
    if zone is not None and zone not in _UTC:
        yield Error(
            f"TIME_ZONE is {zone!r}, so that times would be written in it and compared with the database's clock in "
            f"UTC: back-offs would be hours off.",
            hint="Remove TIME_ZONE of this database, or set it to 'UTC'.",
            obj=_where(alias),
            id="outbox.E065",
        )


_BY_VENDOR: Final[dict[str, Callable[[str, dict[str, Any]], Iterator[CheckMessage]]]] = {
    "mysql": _mysql,
    "postgresql": _postgresql,
    "sqlite": _sqlite,
}


def _time_zone_support() -> Iterator[CheckMessage]:
    if not settings.USE_TZ:
        yield Error(
            "USE_TZ is False, and the outbox writes aware times in UTC, which MySQL and SQLite then refuse.",
            hint="Set USE_TZ = True.",
            obj="settings.USE_TZ",
            id="outbox.E066",
        )


def _router(services: dict[str, list[str]]) -> Iterator[CheckMessage]:
    elsewhere = {alias: named for alias, named in services.items() if alias != DEFAULT_DB_ALIAS}
    if elsewhere and not any(_is_ours(router) for router in settings.DATABASE_ROUTERS):
        named = "; ".join(f"{', '.join(of_alias)} on {alias!r}" for alias, of_alias in elsewhere.items())
        yield CheckWarning(
            f"outbox tables live outside of {DEFAULT_DB_ALIAS!r} ({named}), and DATABASE_ROUTERS has no "
            f"outbox.routers.ServiceRouter: a handler's queries would miss the transaction that marks its event.",
            hint="Add 'outbox.routers.ServiceRouter' to DATABASE_ROUTERS, or a router of yours that does the same.",
            obj="settings.DATABASE_ROUTERS",
            id="outbox.W062",
        )


def _is_ours(router: object) -> bool:
    if isinstance(router, str):
        try:
            router = import_string(router)
        except Exception:  # noqa: BLE001 - Django says what is wrong with it
            return False
    return isinstance(router, ServiceRouter) or (isinstance(router, type) and issubclass(router, ServiceRouter))


def _atomic_requests(services: dict[str, list[str]]) -> Iterator[CheckMessage]:
    wrapped = sorted(alias for alias in connections if connections.settings[alias].get("ATOMIC_REQUESTS"))
    for alias, of_alias in services.items():
        if wrapped and alias not in wrapped:
            yield CheckWarning(
                f"ATOMIC_REQUESTS opens a transaction on {', '.join(map(repr, wrapped))} for each request, and the "
                f"outbox of {', '.join(of_alias)} is on {alias!r}: publishing from a view is refused, as the two would "
                f"not commit together.",
                hint=f"Set ATOMIC_REQUESTS for {alias!r} too, or publish inside transaction.atomic(using={alias!r}).",
                obj=_where(alias),
                id="outbox.W063",
            )


def _where(alias: str) -> str:
    return f"settings.DATABASES[{alias!r}]"
