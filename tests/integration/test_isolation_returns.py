"""What a handler returns: work that nobody does is a failure, whatever it hides behind; values are none."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest.mock import MagicMock

import pytest

from outbox.consumer.loop import Consumer
from tests.consumers import deliver, published
from tests.factories import get
from tests.integration.misbehaving import check_that_these_failed_alone
from tests.toys import BULK, NOTE, Toys, effect_ids

Function = Callable[[Any], Any]


async def coroutine(_argument: Any) -> None:
    raise AssertionError("nobody runs it")


@functools.wraps(print)
def wrapping(argument: Any) -> Any:
    """Hide the coroutine from who looks at the function, as a decorator of another library does."""
    return coroutine(argument)


class AsynchronousCall:
    async def __call__(self, argument: Any) -> None:
        await coroutine(argument)


def generator(argument: Any) -> Iterator[Any]:
    yield argument


async def asynchronous_generator(argument: Any) -> AsyncIterator[Any]:
    yield argument


def future(_argument: Any) -> Future[None]:
    return Future()


def awaitable(argument: Any) -> Any:
    class Later:
        def __await__(self) -> Iterator[Any]:
            return coroutine(argument).__await__()

    return Later()


def asyncio_future(_argument: Any) -> Any:
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


UNFINISHED: dict[str, Function] = {
    "coroutine behind functools.wraps": wrapping,
    "coroutine behind a lambda": lambda argument: coroutine(argument),  # noqa: PLW0108
    "coroutine behind functools.partial": functools.partial(lambda function, argument: function(argument), coroutine),
    "object with async __call__": AsynchronousCall(),
    "generator": generator,
    "iterator": lambda argument: iter([argument]),
    "lazy map": lambda argument: map(print, [argument]),
    "asynchronous generator": asynchronous_generator,
    "future": future,
    "asyncio's future": asyncio_future,
    "awaitable": awaitable,
}

VALUES: dict[str, Function] = {
    "mock": MagicMock(name="handler"),
    "mock's result": lambda _argument: MagicMock(),
    "number": lambda _argument: 7,
    "text": lambda _argument: "done",
    "list": lambda argument: [argument],
    "what it was given": lambda argument: argument,
    "false": lambda _argument: False,
    "error": lambda _argument: ValueError("returned, not raised"),
}


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("returned", UNFINISHED)
def test_handler_that_returns_work_that_nobody_does_fails_alone(
    alias: str, toys: Toys, consumer: Consumer, returned: str, event_type: str
) -> None:
    ids = published(alias, 6, key=str, event_type=event_type)
    bad = {ids[1], ids[4]}
    _let_return(toys, event_type, UNFINISHED[returned], bad)

    deliver(alias, consumer, ids)

    check_that_these_failed_alone(alias, ids, bad, "UnfinishedCallError", "which nobody runs or waits for")
    assert "make it a plain function" in get(alias, ids[1]).last_error


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("returned", VALUES)
def test_value_that_a_handler_returns_is_no_failure(
    alias: str, toys: Toys, consumer: Consumer, returned: str, event_type: str
) -> None:
    ids = published(alias, 3, key=str, event_type=event_type)
    _let_return(toys, event_type, VALUES[returned], set(ids))

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert consumer.totals.consumed == 3


def test_coroutine_is_closed_and_python_does_not_warn_of_it(
    alias: str, toys: Toys, consumer: Consumer, recwarn: pytest.WarningsRecorder
) -> None:
    [row_id] = published(alias, 1)
    _let_return(toys, NOTE, wrapping, {row_id})

    deliver(alias, consumer, [row_id])

    check_that_these_failed_alone(alias, [row_id], {row_id}, "UnfinishedCallError", "coroutine")
    assert not [each for each in recwarn if "never awaited" in str(each.message)]


def _let_return(toys: Toys, event_type: str, function: Function, row_ids: set[int]) -> None:
    """Have the handler return what ``function`` does, for these rows, once it has written."""
    handler = toys.handlers.get(event_type)
    assert handler is not None

    def call(argument: Any) -> Any:
        handler.function(argument)
        deliveries = argument if handler.batch else [argument]
        return function(argument) if any(each.outbox_id in row_ids for each in deliveries) else None

    toys.handlers.remove(event_type)
    toys.handlers.add(event_type, call, batch=handler.batch)
