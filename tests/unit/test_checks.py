"""Wrong configuration and wrong declarations are said by `manage.py check`; nothing here connects to anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import kafka
import msgspec
import pytest
from django.apps.registry import Apps
from django.core.checks import CheckMessage, run_checks
from django.db import connections
from django.test.utils import isolate_apps

from outbox import RetryPolicy
from outbox.brokers.kafka import ways as kafka_ways
from outbox.checks import TAG, broker, check_configuration, check_tables, databases, declarations, options
from outbox.declarations.contracts import ContractRegistry, event
from outbox.declarations.handlers import HandlerRegistry
from outbox.fields import KeyField
from outbox.models import OutboxMessage
from outbox.routers import ServiceRouter
from tests.services import CHECKOUT

Check = Callable[..., dict[str, list[CheckMessage]]]


@pytest.fixture
def check(settings: Any) -> Check:
    """Return a function that sets `settings.OUTBOX` and returns the messages by id."""

    def with_outbox(outbox: object = None, **keys: Any) -> dict[str, list[CheckMessage]]:
        settings.OUTBOX = keys if outbox is None else outbox
        found: dict[str, list[CheckMessage]] = {}
        for message in check_configuration():
            assert message.hint, f"{message.id} has no hint"
            assert str(message)
            found.setdefault(str(message.id), []).append(message)
        return found

    return with_outbox


@pytest.fixture
def contracts(monkeypatch: pytest.MonkeyPatch) -> ContractRegistry:
    """Replace the declared contracts by none."""
    registry = ContractRegistry()
    monkeypatch.setattr(declarations, "contracts", registry)
    monkeypatch.setattr(options, "contracts", registry)
    return registry


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> HandlerRegistry:
    """Replace the declared handlers by none."""
    registry = HandlerRegistry()
    monkeypatch.setattr(declarations, "handlers", registry)
    return registry


def declare(registry: ContractRegistry, event_type: str, service: str, **more: Any) -> None:
    payload_type = msgspec.defstruct("Payload", [("key", str)])
    event(event_type, service=service, key="key", registry=registry, **more)(payload_type)


def outbox_model(name: str, table: str, **attributes: Any) -> type[OutboxMessage]:
    """Return a new concrete outbox model; use it with the fixture `apps`."""
    meta = type("Meta", (OutboxMessage.Meta,), {"abstract": False, "app_label": "agent", "db_table": table})
    return type(name, (OutboxMessage,), {"__module__": __name__, "Meta": meta, **attributes})


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apps]:
    """Replace the installed models by those that the test makes."""
    with isolate_apps("agent_events.agent") as isolated:
        monkeypatch.setattr(declarations, "apps", isolated)
        yield isolated


# --- the project -------------------------------------------------------------------------------------------------


def test_the_project_has_no_errors() -> None:
    assert [message for message in run_checks(tags=[TAG]) if message.is_serious()] == []


def test_every_id_is_documented_and_no_other() -> None:
    sources = "".join(path.read_text() for path in (CHECKOUT / "outbox" / "checks").glob("*.py"))
    documented = (CHECKOUT / "docs" / "configuration.md").read_text()
    pattern = r"outbox\.[EW]\d{3}"
    assert set(re.findall(pattern, sources)) == set(re.findall(pattern, documented))


def test_nothing_is_asked_of_a_database_that_the_command_did_not_name() -> None:
    assert list(check_tables(databases=None)) == []
    assert list(check_tables(databases=[])) == []


# --- settings.OUTBOX ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outbox",
    [
        {"NAMSPACE": "x"},
        {"RELAY": {"BATCH_SIZE": 0}},
        {"RELAY": {"BATCH_SIZE": "many"}},
        {"SERVICES": {"agent": "table"}},
        {"LEASES": None},
        {1: 2},
        [],
        "text",
        7,
    ],
)
def test_settings_that_cannot_be_read_give_one_message(check: Check, outbox: object) -> None:
    found = check(outbox)
    assert list(found) == ["outbox.E001"]
    assert "settings.OUTBOX" in str(found["outbox.E001"][0])


def test_no_settings_are_good_settings(check: Check) -> None:
    assert not [each for each in check({}) if each.startswith("outbox.E")]


@pytest.mark.parametrize(
    ("leases", "expected"),
    [
        ({"TTL_SECONDS": 6, "HEARTBEAT_SECONDS": 2}, set()),
        ({"TTL_SECONDS": 6, "HEARTBEAT_SECONDS": 3}, set()),
        ({"TTL_SECONDS": 6, "HEARTBEAT_SECONDS": 3.1}, {"outbox.E002"}),
        ({"TTL_SECONDS": 8, "HEARTBEAT_SECONDS": 2}, set()),
        ({"TTL_SECONDS": 8.5, "HEARTBEAT_SECONDS": 2}, {"outbox.E003"}),
        ({"TTL_SECONDS": 10, "HEARTBEAT_SECONDS": 6}, {"outbox.E002", "outbox.E003"}),
    ],
)
def test_leases_keep_a_living_worker_and_free_a_dead_one_in_ten_seconds(
    check: Check, leases: dict[str, float], expected: set[str]
) -> None:
    assert set(check(LEASES=leases)) & {"outbox.E002", "outbox.E003"} == expected


def test_reference_size_that_is_never_reached_is_a_warning(check: Check) -> None:
    assert "outbox.W001" in check(REFERENCE_BYTES=2000, MAX_PAYLOAD_BYTES=1000)
    assert "outbox.W001" not in check(REFERENCE_BYTES=1000, MAX_PAYLOAD_BYTES=1000)


def test_retries_that_cannot_be_computed_are_an_error(check: Check, contracts: ContractRegistry) -> None:
    declare(contracts, "order.placed", "agent", retry=RetryPolicy())
    assert len(check(RETRY_BASE_SECONDS=60, RETRY_CAP_SECONDS=30)["outbox.E004"]) == 1
    assert len(check(EVENTS={"order.placed": {"CAP_SECONDS": 0.5}})["outbox.E004"]) == 1
    assert "outbox.E004" not in check(EVENTS={"order.placed": {"CAP_SECONDS": 5}})


def test_unknown_word_for_on_dead_is_an_error(check: Check) -> None:
    message = check(EVENTS={"agent.state.snapshot.persist": {"ON_DEAD": "explode"}})["outbox.E005"][0]
    assert "'continue'" in str(message)
    assert "'park'" in str(message)
    assert "outbox.E005" not in check(EVENTS={"agent.state.snapshot.persist": {"ON_DEAD": "park"}})


@pytest.mark.parametrize("path", ["nowhere.at_all", "nodots", "outbox.conf.missing", "outbox.conf.PositiveInt.x", ""])
def test_traceparent_that_is_no_function_is_an_error(check: Check, path: str) -> None:
    assert "outbox.E006" in check(TRACEPARENT=path)


def test_traceparent_function_is_accepted(check: Check) -> None:
    assert "outbox.E006" not in check(TRACEPARENT="outbox.wire.tracing.current_traceparent")


# --- the client of Kafka ---------------------------------------------------------------------------------------------


KAFKA = {"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": "localhost:9092"}}


def test_untested_version_of_the_client_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "outbox.W023" not in check(BROKER=KAFKA)
    monkeypatch.setattr(kafka, "__version__", "3.1.0.dev0")

    [message] = check(BROKER=KAFKA)["outbox.W023"]

    assert "kafka-python 3.1.0.dev0 is installed and was not tested" in message.msg
    assert "kafka-python>=3.0.12,<3.1" in str(message.hint)
    assert "outbox.W023" not in check(BROKER={"BACKEND": "table"})


def test_client_that_is_made_otherwise_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "outbox.W024" not in check(BROKER=KAFKA)
    monkeypatch.setattr(kafka_ways, "reading_fault", lambda: "AttributeError: no '_buffer'")

    [message] = check(BROKER=KAFKA)["outbox.W024"]

    assert "AttributeError: no '_buffer'" in message.msg
    assert "records are read by the client alone" in message.msg


# --- the broker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend", ["kafak", "nowhere.Broker", "outbox.declarations.routes.ServiceRoute", "outbox", ""]
)
def test_unknown_backend_is_an_error(check: Check, backend: str) -> None:
    found = check(BROKER={"BACKEND": backend})
    assert "outbox.E021" in found
    assert "outbox.E022" not in found


def test_missing_client_library_is_an_error(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_kafka(_name: str) -> object:
        raise ModuleNotFoundError("No module named 'kafka'", name="kafka")

    monkeypatch.setattr(broker, "load_backend", without_kafka)
    message = check(BROKER={"BACKEND": "kafka"})["outbox.E021"][0]
    assert "No module named 'kafka'" in str(message)
    assert "kafka-python" in str(message)


@pytest.mark.parametrize(
    ("backend", "broker_options"),
    [
        ("table", {"colour": "red"}),
        ("memory", {"partitions": 0}),
        ("kafka", {}),
        ("kafka", {"bootstrap_servers": "localhost:9092", "colour": "red"}),
        ("kafka", {"bootstrap_servers": "user:secret@localhost:9092"}),
        ("kafka", {"bootstrap_servers": "localhost:9092", "producer": {"acks": 0}}),
    ],
)
def test_wrong_broker_options_are_an_error(check: Check, backend: str, broker_options: dict[str, Any]) -> None:
    found = check(BROKER={"BACKEND": backend, "OPTIONS": broker_options})
    assert "outbox.E022" in found
    assert "secret" not in str(found["outbox.E022"][0])


def test_records_that_kafka_would_refuse_are_an_error(check: Check) -> None:
    def with_options(reference_bytes: int, **client: Any) -> bool:
        options = {"bootstrap_servers": "localhost:9092", **client}
        found = check(BROKER={"BACKEND": "kafka", "OPTIONS": options}, REFERENCE_BYTES=reference_bytes)
        return "outbox.E023" in found

    assert not with_options(256 * 1024)
    assert with_options(1024 * 1024)
    assert not with_options(1024 * 1024, producer={"max_request_size": 4_000_000})
    assert with_options(256 * 1024, producer={"max_request_size": 100_000})
    assert with_options(256 * 1024, common={"max_request_size": 100_000})


def test_whole_payloads_that_kafka_would_refuse_are_an_error(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    outbox_model("Whole", "whole_outbox_messages", service="whole", whole_payload_bytes=900_000)
    outbox_model("Other", "other_outbox_messages", service="other")

    def said(backend: str = "kafka", max_payload: int = 8_000_000, **client: Any) -> list[str]:
        options = {"bootstrap_servers": "localhost:9092", **client} if backend == "kafka" else {}
        found = check(BROKER={"BACKEND": backend, "OPTIONS": options}, MAX_PAYLOAD_BYTES=max_payload)
        return [str(message) for message in found.get("outbox.E024", [])]

    assert said() == []
    assert said("table", producer={"max_request_size": 10}) == []
    [message] = said(producer={"max_request_size": 905_000})
    assert "'whole'" in message
    assert "max_request_size = 905,000" in message
    assert said(producer={"max_request_size": 905_000}, max_payload=800_000) == []
    assert said(producer={"max_request_size": 909_000}) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_whole_payloads_of_no_length_are_an_error(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps, limit: int
) -> None:
    outbox_model("Whole", "whole_outbox_messages", service="whole", whole_payload_bytes=limit)
    assert "whole_payload_bytes" in str(check({})["outbox.E043"][0])


def test_only_the_column_of_event_types_may_be_called_otherwise(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    typed = KeyField(max_length=64, db_column="biz_type")
    outbox_model("Shared", "shared_outbox_messages", service="shared", event_type=typed)
    assert check({}) == {}
    keyed = KeyField(max_length=128, db_column="biz_key")
    outbox_model("Renamed", "renamed_outbox_messages", service="renamed", message_key=keyed)
    [message] = check({})["outbox.E050"]
    assert "message_key (biz_key)" in str(message)


def test_memory_broker_is_a_warning(check: Check) -> None:
    assert "outbox.W021" in check(BROKER={"BACKEND": "memory"})
    assert "outbox.W021" not in check(BROKER={"BACKEND": "table"})


# --- declarations ------------------------------------------------------------------------------------------------


def test_model_without_service_is_an_error(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    outbox_model("Nameless", "nameless")
    outbox_model("Numbered", "numbered", service=7)
    outbox_model("Good", "good_outbox_messages", service="good")
    found = check({})
    assert {message.obj.__name__ for message in found["outbox.E041"]} == {"Nameless", "Numbered"}
    assert set(found) == {"outbox.E041"}


def test_two_models_of_one_service_are_an_error_and_a_proxy_is_not(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    first = outbox_model("First", "good_outbox_messages", service="good")
    type("Proxy", (first,), {"__module__": __name__, "Meta": type("Meta", (), {"proxy": True, "app_label": "agent"})})
    assert set(check({})) == set()
    outbox_model("Second", "good_outbox_messages", service="good")
    assert "agent.First, agent.Second" in str(check({})["outbox.E042"][0])


def test_names_that_are_not_allowed_are_an_error(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    outbox_model("Shouting", "shouting_outbox_messages", service="SHOUTING")
    declare(contracts, "order.placed", "SHOUTING")
    found = check({})
    assert "'SHOUTING'" in str(found["outbox.E043"][0])
    assert "outbox.E046" not in found, "its service is the problem, and is said once"


def test_table_name_that_is_not_allowed_is_an_error(check: Check) -> None:
    assert "drop" in str(check(SERVICES={"agent": {"TABLE": "x; drop table y"}})["outbox.E043"][0])


def test_table_that_migrations_and_workers_disagree_about_is_an_error(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry, apps: Apps
) -> None:
    outbox_model("Own", "own_table", service="own")
    assert "outbox_table" in str(check({})["outbox.E044"][0])
    assert "outbox.E044" not in check(SERVICES={"own": {"TABLE": "own_table"}})


@pytest.mark.parametrize("kind", ["TABLE", "TOPIC", "GROUP"])
def test_name_that_two_services_share_is_an_error(check: Check, kind: str) -> None:
    found = check(SERVICES={"agent": {kind: "same"}, "task": {kind: "same"}})
    assert "'agent' and 'task'" in str(found["outbox.E045"][0])


def test_same_table_name_in_two_databases_is_no_error(check: Check) -> None:
    services = {"agent": {"TABLE": "same"}, "task": {"TABLE": "same", "DATABASE": "elsewhere"}}
    assert "outbox.E045" not in check(SERVICES=services)


def test_event_of_unknown_service_is_an_error(check: Check, contracts: ContractRegistry) -> None:
    declare(contracts, "order.placed", "warehouse")
    assert "'warehouse'" in str(check({})["outbox.E046"][0])


def test_event_type_that_the_column_cannot_hold_is_an_error(check: Check, contracts: ContractRegistry) -> None:
    declare(contracts, "x" * 65, "agent")
    assert "outbox.E046" in check({})


def test_handler_of_an_event_without_contract_is_an_error(check: Check, handlers: HandlerRegistry) -> None:
    handlers.add("order.lost", print)
    assert "'order.lost'" in str(check({})["outbox.E047"][0])


def test_event_without_handler_is_a_warning(
    check: Check, contracts: ContractRegistry, handlers: HandlerRegistry
) -> None:
    declare(contracts, "order.placed", "agent")
    declare(contracts, "order.paid", "agent")
    handlers.add("order.paid", print)
    message = check({})["outbox.W041"][0]
    assert "order.placed" in str(message)
    assert "order.paid" not in str(message)


@pytest.mark.parametrize(
    ("common", "named"),
    [
        ({"security_protocol": "SASL_SLL"}, "'security_protocol' is 'SASL_SLL'"),
        ({"sasl_plain_password": "Sw0rdfish"}, "'sasl_plain_password' has no effect"),
        ({"security_protocol": "SASL_SSL"}, "'sasl_mechanism' is None"),
    ],
)
def test_broker_that_would_be_spoken_to_in_the_clear_is_an_error(
    check: Check, common: dict[str, str], named: str
) -> None:
    found = check(BROKER={"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": "a:1", "common": common}})
    assert named in str(found["outbox.E022"][0])
    assert "Sw0rdfish" not in str(found)


def test_configured_names_that_nobody_declares_are_errors(check: Check) -> None:
    found = check(SERVICES={"agnet": {}}, EVENTS={"agent.state.snapshot.persits": {}})
    assert "'agnet'" in str(found["outbox.E048"][0])
    assert "agent" in str(found["outbox.E048"][0].hint)
    assert "'agent.state.snapshot.persits'" in str(found["outbox.E049"][0])


# --- databases ---------------------------------------------------------------------------------------------------


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes `default` look like a configured database of another kind."""

    def configure(vendor: str, **config: Any) -> None:
        monkeypatch.setattr(databases, "vendor_of", lambda alias: vendor)
        for key, value in config.items():
            monkeypatch.setitem(connections["default"].settings_dict, key, value)

    return configure


def test_alias_that_does_not_exist_is_an_error(check: Check) -> None:
    found = check(SERVICES={"agent": {"DATABASE": "nowhere"}})
    assert "'nowhere'" in str(found["outbox.E061"][0])
    assert set(found) <= {"outbox.E061", "outbox.W041"}


@pytest.mark.parametrize("vendor", ["oracle", "microsoft", ""])
def test_unsupported_or_broken_database_is_an_error(check: Check, database: Callable[..., None], vendor: str) -> None:
    database(vendor)
    assert "outbox.E062" in check({})


def test_backend_that_cannot_be_loaded_has_no_vendor() -> None:
    connections.settings["broken"] = {**connections.settings["default"], "ENGINE": "nowhere.at.all"}
    try:
        assert databases.vendor_of("broken") == ""
    finally:
        del connections.settings["broken"]


def test_autocommit_off_is_an_error(check: Check, database: Callable[..., None]) -> None:
    database("postgresql", AUTOCOMMIT=False)
    assert "outbox.E063" in check({})


@pytest.mark.parametrize(
    ("given", "is_wrong"),
    [
        ({}, False),
        ({"isolation_level": "read committed"}, False),
        ({"isolation_level": "READ COMMITTED"}, False),
        ({"isolation_level": "repeatable read"}, True),
        ({"isolation_level": None}, True),
    ],
)
def test_mysql_isolation_level_must_be_read_committed(
    check: Check, database: Callable[..., None], given: dict[str, Any], is_wrong: bool
) -> None:
    database("mysql", OPTIONS=given)
    assert ("outbox.E064" in check({})) is is_wrong


@pytest.mark.parametrize(
    ("vendor", "zone", "is_wrong"),
    [
        ("mysql", None, False),
        ("mysql", "UTC", False),
        ("mysql", "Asia/Shanghai", True),
        ("sqlite", "Asia/Shanghai", True),
        ("postgresql", "Asia/Shanghai", False),
    ],
)
def test_database_time_zone_must_be_utc_where_times_have_none(
    check: Check, database: Callable[..., None], vendor: str, zone: str | None, is_wrong: bool
) -> None:
    database(vendor, TIME_ZONE=zone)
    assert ("outbox.E065" in check({})) is is_wrong


def test_naive_times_are_an_error(check: Check, settings: Any) -> None:
    settings.USE_TZ = False
    assert "outbox.E066" in check({})


@pytest.mark.parametrize(
    ("given", "is_wrong"),
    [({}, True), ({"transaction_mode": "DEFERRED"}, True), ({"transaction_mode": "immediate"}, False)],
)
def test_sqlite_should_lock_at_begin(
    check: Check, database: Callable[..., None], given: dict[str, Any], is_wrong: bool
) -> None:
    database("sqlite", OPTIONS=given)
    assert ("outbox.W061" in check({})) is is_wrong


def test_router_is_wanted_where_a_service_lives_elsewhere(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    class OurRouter(ServiceRouter):
        pass

    elsewhere = {"agent": {"DATABASE": "elsewhere"}}

    def use(*routers: object) -> None:
        # Without the signal that makes Django load them: a wrong path is to be met by the check.
        monkeypatch.setattr("django.conf.settings.DATABASE_ROUTERS", list(routers))

    use()
    assert "outbox.W062" not in check({})
    assert "'elsewhere'" in str(check(SERVICES=elsewhere)["outbox.W062"][0])
    use("nowhere.Router")
    assert "outbox.W062" in check(SERVICES=elsewhere)
    for router in ("outbox.routers.ServiceRouter", ServiceRouter(), OurRouter(), OurRouter):
        use(router)
        assert "outbox.W062" not in check(SERVICES=elsewhere)


def test_request_transactions_on_another_database_are_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert "outbox.W063" not in check({})
    assert "'elsewhere'" in str(check(SERVICES={"agent": {"DATABASE": "elsewhere"}})["outbox.W063"][0])
