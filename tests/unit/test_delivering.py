"""Parting a batch that fails: whom it fails by, who comes behind them, and in how many calls."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.delivering import call_handlers, sift
from outbox.exceptions import HandlerExitError
from outbox.handlers import Delivery, Handler
from outbox.planning import Readable


def readable(row_id: int, key: str = "k", handler: Handler | None = None) -> Readable:
    delivery: Delivery[Any] = Delivery(
        outbox_id=row_id,
        event_id=str(row_id),
        event_type="toy",
        event_version="v1",
        message_key=key,
        aggregate_id="",
        payload=None,
        attempt=1,
        database="default",
    )
    return Readable(delivery, handler or Handler(lambda _: None, batch=False))


def ids_of(readables: Sequence[Readable]) -> list[int]:
    return [each.delivery.outbox_id for each in readables]


class Bears:
    """Bears what holds no bad event; remembers what took effect, in order."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.effects, self.calls = bad, [], 0

    def __call__(self, readables: Sequence[Readable]) -> bool:
        assert readables, "nobody is called for nothing"
        self.calls += 1
        ids = ids_of(readables)
        if self.bad.intersection(ids):
            return False
        self.effects += ids
        return True


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.data())
def test_the_first_bad_one_of_each_key_is_guilty_and_nobody_overtakes_it(keys: list[str], data: st.DataObject) -> None:
    batch = [readable(number, key) for number, key in enumerate(keys, start=1)]
    bad = data.draw(st.sets(st.sampled_from(ids_of(batch)))) if batch else set()
    bears = Bears(bad)

    sifted = sift(batch, bears)

    first_bad: dict[str, int] = {}
    for each in batch:
        if each.delivery.outbox_id in bad:
            first_bad.setdefault(each.delivery.message_key, each.delivery.outbox_id)
    assert sorted(ids_of(sifted.guilty)) == sorted(first_bad.values())
    behind = [row_id for row_id, key in enumerate(keys, start=1) if row_id > first_bad.get(key, len(keys))]
    assert sorted(ids_of(sifted.behind)) == behind
    assert all(sifted.is_behind(keys[row_id - 1], row_id) for row_id in behind)
    good = [row_id for row_id in ids_of(batch) if row_id not in behind and row_id not in first_bad.values()]
    assert sorted(ids_of(sifted.good)) == good
    assert not any(sifted.is_behind(keys[row_id - 1], row_id) for row_id in good)
    assert bears.effects == good, "each once, in order"


@pytest.mark.parametrize("size", [2, 3, 17, 500])
def test_one_guilty_event_costs_few_calls(size: int) -> None:
    for bad in {1, 2, size // 2 + 1, size}:
        bears = Bears({bad})
        sifted = sift([readable(number, f"k{number}") for number in range(1, size + 1)], bears)
        assert ids_of(sifted.guilty) == [bad]
        assert bears.calls <= 2 * ceil(log2(size))


def test_event_that_is_alone_is_called_before_it_is_blamed() -> None:
    bears = Bears(set())
    assert ids_of(sift([readable(1)], bears).good) == [1]
    assert bears.calls == 1


def test_handler_that_would_end_the_process_is_an_error() -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    with pytest.raises(HandlerExitError):
        call_handlers([readable(1, handler=Handler(leave, batch=False))])


def test_person_who_interrupts_is_not_an_error_of_an_event() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_handlers([readable(1, handler=Handler(interrupt, batch=True))])
