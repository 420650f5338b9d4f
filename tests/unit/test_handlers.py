"""One event, one handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from outbox import Delivery, Discard, Retry, event, handles
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import Handler, HandlerRegistry
from outbox.exceptions import ConfigurationError


class Thing(msgspec.Struct):
    """A payload."""

    key: str


class Undeclared(msgspec.Struct):
    """A payload without a contract."""


@pytest.fixture
def contracts() -> ContractRegistry:
    registry = ContractRegistry()
    event("a.b", service="agent", key="key", registry=registry)(Thing)
    return registry


def declare(
    contracts: ContractRegistry, handlers: HandlerRegistry, function: Callable[..., None], *, batch: bool = False
) -> Callable[..., None]:
    return handles(Thing, batch=batch, registry=handlers, contract_registry=contracts)(function)


def one(delivery: Delivery[Any]) -> None: ...


def other(delivery: Delivery[Any]) -> None: ...


def test_handler_is_found_by_its_event_type(contracts: ContractRegistry) -> None:
    handlers = HandlerRegistry()

    assert declare(contracts, handlers, one, batch=True) is one
    assert handlers.get("a.b") == Handler(one, batch=True)
    assert "a.b" in handlers
    assert list(handlers) == ["a.b"]
    assert handlers.get("nobody") is None


def test_same_handler_again_is_harmless_and_another_is_refused(contracts: ContractRegistry) -> None:
    handlers = HandlerRegistry()
    declare(contracts, handlers, one)
    declare(contracts, handlers, one)

    with pytest.raises(ConfigurationError, match=r"'a\.b' has two handlers"):
        declare(contracts, handlers, other)
    with pytest.raises(ConfigurationError, match=r"'a\.b' has two handlers"):
        declare(contracts, handlers, one, batch=True)
    handlers.remove("a.b")
    handlers.remove("a.b")
    declare(contracts, handlers, other)


async def asynchronous(delivery: Delivery[Any]) -> None: ...


def generating(delivery: Delivery[Any]) -> Iterator[None]:
    yield


@pytest.mark.parametrize("function", [asynchronous, generating])
def test_handler_that_a_call_would_not_run_is_refused(
    contracts: ContractRegistry, function: Callable[..., Any]
) -> None:
    """Its events would be marked consumed, and nothing would have happened."""
    with pytest.raises(ConfigurationError, match="make it a plain function"):
        declare(contracts, HandlerRegistry(), function)


def test_handler_of_an_undeclared_event_is_refused(contracts: ContractRegistry) -> None:
    with pytest.raises(ConfigurationError, match=r"Undeclared.*not declared with @event"):
        handles(Undeclared, registry=HandlerRegistry(), contract_registry=contracts)(one)


def test_retry_refuses_a_negative_pause() -> None:
    from datetime import timedelta

    with pytest.raises(ValueError, match="must not be negative"):
        Retry(after=timedelta(seconds=-1))
    assert Retry("later", after=timedelta(0)).after == timedelta(0)
    assert str(Discard("never")) == "never"
