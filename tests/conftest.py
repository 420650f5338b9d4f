"""What every kind of test shares: real databases, services that live on them, a broker, a clock and a stop flag.

Tests of the outbox need real commits, so these fixtures open the databases without a transaction around the test and
empty the few tables that are used afterwards, which takes milliseconds where flushing a database takes seconds.
Django is imported when a fixture needs it: some tests run without it.
"""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.properties import bounded
from tests.services import require

if TYPE_CHECKING:
    from outbox.brokers.memory import MemoryBroker
    from tests.toys import ManualClock, RecordingStop, Toys

ALIASES = ("default", "mariadb", "mysql", "postgres")
"""The aliases of ``tests.settings``; ``default`` is SQLite."""

SERVICES = ("agent", "task", "memory", "active-scheduler", "notification")

Configure = Callable[..., None]

REAL_NAMES: dict[str, str] = {}
"""The names of the databases that are not for tests."""

# A property that names no bounds has these: the usual ones end an example that a busy machine held up for 200 ms.
hypothesis.settings.register_profile("outbox", bounded(100))
hypothesis.settings.load_profile("outbox")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run last what needs the machine or a shared server for itself."""
    items.sort(key=_is_run_alone)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that measures times or takes a server away run while no other test of this checkout is at work."""
    with Path(__file__).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if _is_run_alone(item) else fcntl.LOCK_SH)
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Make what was logged fit for being sent between processes: half a surrogate pair cannot be."""
    report: Any = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Remember which databases are real, before any is replaced by one for tests; let each be made by itself."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what it runs in the background so, and processes that tests start would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.pluginmanager.hasplugin("django"):
        return
    from django.db import connections

    for alias in connections:
        options = connections[alias].settings_dict
        REAL_NAMES[alias] = options["NAME"]
        options["TEST"].setdefault("DEPENDENCIES", [])


@pytest.fixture(scope="session")
def test_databases(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any, django_db_keepdb: bool
) -> Iterator[None]:
    """Create the databases that tests ask ``database_alias`` for; pytest-django creates those of marked tests only."""
    from django.db import connections
    from django.test.utils import setup_databases, teardown_databases

    wanted = {
        item.callspec.params[name]
        for item in request.session.items
        for name in ("database_alias", "other_alias")
        if isinstance(item, pytest.Function) and name in getattr(item, "fixturenames", ())
    } & set(REAL_NAMES) | {"default"}  # which Django opens on the way
    missing = {alias for alias in wanted if connections[alias].settings_dict["NAME"] == REAL_NAMES[alias]}
    with django_db_blocker.unblock():
        created = setup_databases(
            verbosity=0, interactive=False, aliases=missing, serialized_aliases=(), keepdb=django_db_keepdb
        )
        for alias in wanted:
            _create_toy_table(alias)
    yield
    if not django_db_keepdb:
        with django_db_blocker.unblock():
            teardown_databases(created, verbosity=0)


@pytest.fixture(params=ALIASES)
def database_alias(request: pytest.FixtureRequest, test_databases: None, django_db_blocker: Any) -> Iterator[str]:
    """Give each database in turn: with real commits, and emptied after the test."""
    from django.db import connections

    alias: str = request.param
    if alias not in REAL_NAMES:
        require(alias)
        pytest.fail(f"{alias} has come up since the settings for tests were read: start again")
    with django_db_blocker.unblock():
        yield alias
        for each in connections.all(initialized_only=True):
            each.close_if_unusable_or_obsolete()
        _empty(alias)


@pytest.fixture
def other_alias(request: pytest.FixtureRequest, database_alias: str) -> Iterator[str]:
    """Give a second database beside ``database_alias``, which a test names by an indirect parameter."""
    alias: str = request.param
    if alias not in REAL_NAMES:
        require(alias)
        pytest.fail(f"{alias} has come up since the settings for tests were read: start again")
    yield alias
    _empty(alias)


@pytest.fixture
def configure(database_alias: str, settings: Any) -> Configure:
    """Return a function that sets ``settings.OUTBOX`` anew, with every service on ``database_alias``."""

    def set_outbox(*, services: dict[str, Any] | None = None, **options: Any) -> None:
        on_alias = {service: {"DATABASE": database_alias} for service in SERVICES}
        settings.OUTBOX = {
            "NAMESPACE": "smartflow",
            "BROKER": {"BACKEND": "memory"},
            "SERVICES": on_alias | (services or {}),
            **options,
        }

    return set_outbox


@pytest.fixture
def alias(database_alias: str, configure: Configure) -> str:
    """Make every service live on ``database_alias``, and return it."""
    configure()
    return database_alias


@pytest.fixture
def toys() -> Toys:
    """Return events and handlers of the agent service that a test can make fail."""
    from tests.toys import Toys

    return Toys()


@pytest.fixture
def broker() -> MemoryBroker:
    from outbox.brokers.memory import MemoryBroker

    return MemoryBroker(partitions=3)


@pytest.fixture
def stop() -> RecordingStop:
    """Return a stop flag that notes pauses instead of making them."""
    from tests.toys import RecordingStop

    return RecordingStop()


@pytest.fixture
def clock() -> ManualClock:
    """Return monotonic seconds that pass only when the test says so."""
    from tests.toys import ManualClock

    return ManualClock()


def _is_run_alone(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("alone", "disruptive"))


def _create_toy_table(alias: str) -> None:
    from django.db import connections

    from tests.toys import ToyEffect

    connection = connections[alias]
    assert connection.settings_dict["NAME"] != REAL_NAMES[alias], "tests must not touch a real database"
    if ToyEffect._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(ToyEffect)


def _empty(alias: str) -> None:
    from django.db import connections, transaction

    from outbox.models import BlockedKey, Installation, RejectedRecord, ServiceSwitch, ShardLease, Worker
    from outbox.registry.catalog import service_models
    from tests.toys import ToyEffect

    connection = connections[alias]
    models = [
        *service_models().values(),
        BlockedKey,
        Installation,
        RejectedRecord,
        ServiceSwitch,
        ShardLease,
        Worker,
        ToyEffect,
    ]
    tables = [*(model._meta.db_table for model in models), "agent_state_snapshot_records"]
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")
