"""A contract is a type: what it refuses, with which field and reason; how older versions are lifted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
import pytest

from outbox import OnDead, RetryPolicy, event, upcasts
from outbox.declarations.contracts import KEY_MAX_LENGTH, ContractRegistry, EventContract
from outbox.exceptions import (
    ConfigurationError,
    EventOwnerConflictError,
    FieldError,
    InvalidEventError,
    PayloadError,
    UnknownEventTypeError,
    UnknownVersionError,
)

UserId = Annotated[int, msgspec.Meta(gt=0)]


class Inner(msgspec.Struct):
    """Something inside."""

    size: Annotated[int, msgspec.Meta(lt=10)]


class Order(msgspec.Struct, kw_only=True):
    """A payload with every kind of rule."""

    order_id: str
    user_id: UserId
    tags: list[UserId] = []
    inner: Inner | None = None
    amounts: dict[int, str] = {}
    at: datetime | None = None
    free: Any = None


@pytest.fixture
def registry() -> ContractRegistry:
    return ContractRegistry()


@pytest.fixture
def contract(registry: ContractRegistry) -> EventContract[Order]:
    event("order.placed", service="agent", version="v3", key="order_id", registry=registry)(Order)
    return registry.get("order.placed")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- at publish --------------------------------------------------------------------------------------------------


def test_valid_event_comes_back(contract: EventContract[Order]) -> None:
    order = Order(order_id="o", user_id=1, tags=[2], inner=Inner(3), amounts={4: "x"})

    assert contract.decode(contract.encode(order), version="v3") == order


@pytest.mark.parametrize(
    ("order", "field", "reason"),
    [
        (Order(order_id="o", user_id=0), "user_id", "Expected `int` >= 1"),
        (Order(order_id="o", user_id="1"), "user_id", "Expected `int`, got `str`"),  # type: ignore[arg-type]
        (Order(order_id=None, user_id=1), "order_id", "Expected `str`, got `null`"),  # type: ignore[arg-type]
        (Order(order_id="o", user_id=1, tags=[1, -1]), "tags[1]", "Expected `int` >= 1"),
        (Order(order_id="o", user_id=1, inner=Inner(10)), "inner.size", "Expected `int` <= 9"),
        (Order(order_id="o", user_id=1, free=object()), "payload", "unsupported"),
        (Order(order_id="o\udc00", user_id=1), "payload", "surrogates"),
        (Order(order_id="o", user_id=1, free=nested(100_000)), "free", "nested deeper than 200 levels"),
        (Order(order_id="o", user_id=1, free=nested(900)), "free", "nested deeper than 200 levels"),
        (Order(order_id="o", user_id=1, free=nested(199)), "free", "nested deeper than 200 levels"),
    ],
)
def test_invalid_event_is_refused_with_field_and_reason(
    contract: EventContract[Order], order: Order, field: str, reason: str
) -> None:
    with pytest.raises(InvalidEventError) as caught:
        contract.encode(order)

    assert caught.value.field == field
    assert reason in caught.value.reason
    assert "'order.placed' refused" in str(caught.value)


def test_event_that_holds_itself_is_refused(contract: EventContract[Order]) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidEventError, match=r"field 'free': .* holds itself"):
        contract.encode(Order(order_id="o", user_id=1, free=value))


def test_event_that_goes_as_deep_as_it_may_comes_back(contract: EventContract[Order]) -> None:
    order = Order(order_id="o", user_id=1, free=nested(198))
    assert contract.decode(contract.encode(order), version="v3") == order


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        (None, "empty"),
        ("x" * (KEY_MAX_LENGTH + 1), "129 characters; at most 128"),
        (" k", "white space"),
        ("k ", "white space"),
        ("k\n", "white space"),
        ("   ", "white space"),
        ("a\x00b", "NUL"),
    ],
)
def test_key_that_the_databases_would_not_keep_apart_is_refused(
    contract: EventContract[Order], key: Any, reason: str
) -> None:
    with pytest.raises(InvalidEventError) as caught:
        contract.message_key(Order(order_id=key, user_id=1))

    assert caught.value.field == "message_key"
    assert reason in caught.value.reason


@pytest.mark.parametrize("key", ["k", "x" * KEY_MAX_LENGTH, "a b", "会话", "🙂"])
def test_key_may_be_any_other_text(contract: EventContract[Order], key: str) -> None:
    assert contract.message_key(Order(order_id=key, user_id=1)) == key


def test_key_and_aggregate_id_are_fields_or_functions(registry: ContractRegistry) -> None:
    event(
        "a.b",
        service="agent",
        key="user_id",
        aggregate_id=lambda order: f"{order.user_id}:{order.order_id}",
        registry=registry,
    )(Order)
    contract = registry.get("a.b")
    order = Order(order_id="o", user_id=7)

    assert contract.message_key(order) == "7"
    assert contract.aggregate_id(order) == "7:o"


def test_aggregate_id_is_the_key_when_nothing_is_said(contract: EventContract[Order]) -> None:
    assert contract.aggregate_id(Order(order_id="o", user_id=7)) == "o"


# --- rules that types cannot express ------------------------------------------------------------------------------


def _refuse_odd(order: Order) -> None:
    if order.user_id % 2:
        raise FieldError("user_id", "must be even")


def test_rule_of_the_contract_is_kept_at_publish_and_at_decode(registry: ContractRegistry) -> None:
    event("a.b", service="agent", key="order_id", validate=_refuse_odd, registry=registry)(Order)
    contract = registry.get("a.b")

    with pytest.raises(InvalidEventError, match="field 'user_id': must be even"):
        contract.encode(Order(order_id="o", user_id=1))
    with pytest.raises(PayloadError, match="field 'user_id': must be even"):
        contract.decode(b'{"order_id": "o", "user_id": 1}', version="v1")
    contract.decode(contract.encode(Order(order_id="o", user_id=2)), version="v1")


# --- at decode ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"null", "Expected `object`, got `null`"),
        (b"no json", "malformed"),
        (b'{"user_id": 1}', "missing required field `order_id`"),
        (b'{"order_id": "o", "user_id": -1}', "$.user_id"),
        (b'{"order_id": "\xff", "user_id": 1}', "codec"),
        (b'{"order_id": "o", "user_id": 1, "free": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
    ],
)
def test_payload_that_breaks_its_contract_is_unreadable(
    contract: EventContract[Order], raw: bytes, reason: str
) -> None:
    with pytest.raises(PayloadError, match=r"'order\.placed' v3") as caught:
        contract.decode(raw, version="v3")
    assert reason in str(caught.value)


def test_fields_added_later_are_passed_over(contract: EventContract[Order]) -> None:
    assert contract.decode(b'{"order_id": "o", "user_id": 1, "added": 1}', version="v3").order_id == "o"


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lifted(contract: EventContract[Order], registry: ContractRegistry) -> EventContract[Order]:
    """Version 1 called the order ``id``; version 2 had its user as a text."""

    @upcasts("order.placed", from_version="v1", to_version="v2", registry=registry)
    def from_v1(payload: dict[str, Any]) -> dict[str, Any]:
        return {"order_id": payload["id"], **{key: value for key, value in payload.items() if key != "id"}}

    @upcasts("order.placed", from_version="v2", to_version="v3", registry=registry)
    def from_v2(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"user_id": int(payload["user_id"])}

    return contract


@pytest.mark.parametrize(
    ("version", "raw"),
    [
        ("v1", b'{"id": "o", "user_id": "7"}'),
        ("v2", b'{"order_id": "o", "user_id": "7"}'),
        ("v3", b'{"order_id": "o", "user_id": 7}'),
    ],
)
def test_older_versions_are_lifted_step_by_step(lifted: EventContract[Order], version: str, raw: bytes) -> None:
    assert lifted.decode(raw, version=version) == Order(order_id="o", user_id=7)


def test_lifted_payload_reads_its_json_as_the_current_version_does(lifted: EventContract[Order]) -> None:
    rest = b'"amounts": {"4": "x"}, "at": "2026-01-02T03:04:05Z", "inner": {"size": 1}}'

    old = lifted.decode(b'{"order_id": "o", "user_id": "7", ' + rest, version="v2")

    assert old == lifted.decode(b'{"order_id": "o", "user_id": 7, ' + rest, version="v3")


@pytest.mark.parametrize("version", ["v0", "v4", "", "V3", "1"])
def test_unknown_version_is_unreadable_and_the_known_are_named(lifted: EventContract[Order], version: str) -> None:
    with pytest.raises(UnknownVersionError, match="known versions: v3, v1, v2"):
        lifted.decode(b"{}", version=version)


def test_lifted_payload_is_validated(lifted: EventContract[Order]) -> None:
    with pytest.raises(PayloadError, match=r"\$\.user_id"):
        lifted.decode(b'{"id": "o", "user_id": "-7"}', version="v1")


@pytest.mark.parametrize("raw", [b'{"user_id": "7"}', b'{"id": "o", "user_id": "x"}', b"[]", b"null", b"no json"])
def test_upcaster_that_fails_makes_the_payload_unreadable(lifted: EventContract[Order], raw: bytes) -> None:
    with pytest.raises(PayloadError, match=r"'order\.placed' v1"):
        lifted.decode(raw, version="v1")


def test_upcasters_in_a_circle_are_an_unknown_version(
    contract: EventContract[Order], registry: ContractRegistry
) -> None:
    upcasts("order.placed", from_version="v1", to_version="v2", registry=registry)(lambda payload: payload)
    upcasts("order.placed", from_version="v2", to_version="v1", registry=registry)(lambda payload: payload)

    with pytest.raises(UnknownVersionError):
        contract.decode(b"{}", version="v1")


@pytest.mark.parametrize("from_version", ["v1", "v3"])
def test_there_is_one_way_from_a_version(
    lifted: EventContract[Order], registry: ContractRegistry, from_version: str
) -> None:
    with pytest.raises(ConfigurationError, match="one way"):
        upcasts("order.placed", from_version=from_version, to_version="v9", registry=registry)(lambda payload: payload)


def test_upcaster_of_an_undeclared_event_is_refused(registry: ContractRegistry) -> None:
    with pytest.raises(UnknownEventTypeError):
        upcasts("nobody", from_version="v1", to_version="v2", registry=registry)(lambda payload: payload)


# --- declaration -------------------------------------------------------------------------------------------------


def test_contract_keeps_what_was_declared(registry: ContractRegistry) -> None:
    retry = RetryPolicy(max_attempts=3)
    declared = event("a.b", service="agent", key="order_id", retry=retry, on_dead="park", registry=registry)(Order)

    contract = registry.get("a.b")
    assert declared is Order
    assert (contract.service, contract.version, contract.retry, contract.on_dead) == (
        "agent",
        "v1",
        retry,
        OnDead.PARK,
    )
    assert registry.of(Order(order_id="o", user_id=1)) is contract
    assert list(registry) == [contract]
    assert registry.of_service("agent") == (contract,)
    assert registry.of_service("task") == ()


@pytest.mark.parametrize("limit", [timedelta(0), timedelta(seconds=-1)])
def test_a_time_limit_that_no_handler_can_keep_is_refused(registry: ContractRegistry, limit: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="time_limit must be positive"):
        event("order.placed", service="agent", key="order_id", time_limit=limit, registry=registry)(Order)


def test_field_that_does_not_exist_is_refused(registry: ContractRegistry) -> None:
    with pytest.raises(ConfigurationError, match="Order has no field 'nothing'; it has order_id, user_id"):
        event("a.b", service="agent", key="nothing", registry=registry)(Order)
    with pytest.raises(ConfigurationError, match="'nothing'"):
        event("a.b", service="agent", key="order_id", aggregate_id="nothing", registry=registry)(Order)


def test_class_that_is_no_struct_is_refused(registry: ContractRegistry) -> None:
    with pytest.raises(ConfigurationError, match=r"msgspec\.Struct"):
        event("a.b", service="agent", key="k", registry=registry)(dict)  # type: ignore[type-var]


def test_event_type_belongs_to_one_service_and_one_class(registry: ContractRegistry) -> None:
    event("a.b", service="agent", key="order_id", registry=registry)(Order)
    event("a.b", service="agent", key="order_id", registry=registry)(Order)

    with pytest.raises(EventOwnerConflictError):
        event("a.b", service="task", key="order_id", registry=registry)(Order)
    with pytest.raises(ConfigurationError, match="two contracts"):
        event("a.b", service="agent", key="size", registry=registry)(Inner)
    with pytest.raises(ConfigurationError, match="two event types"):
        event("c.d", service="agent", key="order_id", registry=registry)(Order)
    assert len(list(registry)) == 1


def test_unknown_types_are_an_error(registry: ContractRegistry) -> None:
    with pytest.raises(UnknownEventTypeError, match="nobody"):
        registry.get("nobody")
    with pytest.raises(UnknownEventTypeError, match="Order"):
        registry.of(Order(order_id="o", user_id=1))


def test_every_contract_of_the_project_belongs_to_a_service_of_the_project() -> None:
    from outbox.declarations.contracts import contracts
    from outbox.registry.catalog import route_registry

    assert {contract.service for contract in contracts} <= set(route_registry().catalog.services)
    assert route_registry().resolve("agent.state.snapshot.persist").service == "agent"
