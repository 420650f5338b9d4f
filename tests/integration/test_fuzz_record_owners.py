"""Whatever records say of installation and event id: a row is handled by its own record, and by no other.

Whose a record is, is decided here a second time, by ``Record.is_of``, from its bytes and in the words of the promise.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hypothesis import event, example, given
from hypothesis import strategies as st

from agent_events.agent.models import AgentOutboxMessage
from outbox.brokers.base import IncomingRecord
from outbox.lifecycle import UNFINISHED, Status
from outbox.models import RejectedRecord
from outbox.storage.installations import installation_id
from outbox.wire.envelope import EVENT_ID_MAX_LENGTH
from tests import factories, fuzz
from tests.fuzz import fuzzing
from tests.toys import BULK, NOTE, OTHER, ToyEffect, Toys, effect_ids

THEIRS: Final = str(uuid.UUID(int=7))


@dataclass(frozen=True)
class Row:
    """A row that is there. ``event_id`` None: the row's own id, as software writes it that has none."""

    key: str = "a"
    event_type: str = NOTE
    status: str = Status.PUBLISHED
    event_id: str | None = "e-7"
    interruptions: int = 0
    fails: bool = False


@dataclass(frozen=True)
class Said:
    """What a record says, of the row at ``place``. ``OWN`` stands for what is the row's or the installation's."""

    place: int = 0
    installation: tuple[str | bytes, ...] = ("OWN",)
    """The headers of that name, in their order."""
    event_id: Any = "OWN"
    event_type: str = "OWN"
    names_row: bool = True


@dataclass(frozen=True)
class Record:
    """A record, and what it is judged by."""

    incoming: IncomingRecord
    own_installation: bytes

    @property
    def is_of_another_installation(self) -> bool:
        """Say whether its first header of that name names one, and not this one."""
        named = [value for name, value in self.incoming.headers if name == "installation_id"]
        return bool(named) and named[0] != self.own_installation and not _is_blank(named[0])

    def is_of(self, row_id: int, row: Row) -> bool:
        """Say whether it names the row by id and type and, where both state an event id, states the row's."""
        said = json.loads(self.incoming.value or b"")
        none = (None, "", str(row_id))
        if self.is_of_another_installation or (said["outbox_id"], said["event_type"]) != (row_id, row.event_type):
            return False
        if not isinstance(said.get("event_id"), str | None):
            return False
        return said.get("event_id") in none or row.event_id in none or said["event_id"] == row.event_id


def mostly(usual: Any, odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return ``usual`` in half of the cases: else hardly a record would be of a row."""
    return st.booleans().flatmap(lambda is_odd: odd if is_odd else st.just(usual))


def _is_blank(value: bytes) -> bool:
    return not value.decode("utf-8", "backslashreplace").strip()


event_ids = st.sampled_from(["e-7", "e-7", "e-8", "", None, "E-7", "é", "1", "x" * EVENT_ID_MAX_LENGTH])
rows = st.lists(
    st.builds(
        Row,
        key=st.sampled_from("abc"),
        event_type=st.sampled_from([NOTE, NOTE, BULK, OTHER]),
        status=st.sampled_from([*[Status.PUBLISHED] * 5, Status.PENDING, Status.CONSUMED, Status.DEAD]),
        event_id=event_ids,
        interruptions=st.sampled_from([0] * 5 + [1]),
        fails=st.sampled_from([False] * 7 + [True]),
    ),
    min_size=2,
    max_size=4,
)
odd_installations = st.sampled_from(
    [THEIRS, THEIRS, "OWN ", "own", b"", b" ", b"\x00", b"\xff\x00", " " * 64 + THEIRS]
) | st.binary(max_size=80)
mixed_installations = st.lists(st.just("OWN") | odd_installations, min_size=1, max_size=2).map(tuple)
odd_event_ids = st.sampled_from(["ROW", "OWN ", 7, "e\u0301"]) | event_ids | fuzz.texts
records = st.lists(
    st.builds(
        Said,
        place=st.integers(0, 3),
        installation=mostly(("OWN",), st.just(()) | mixed_installations),
        event_id=mostly("OWN", odd_event_ids),
        event_type=st.sampled_from(["OWN"] * 9 + [NOTE, BULK, "toy.unknown"]),
        names_row=st.sampled_from([True] * 9 + [False]),
    ),
    min_size=4,
    max_size=10,
)

OLD, NEW = Said(event_id="e-6"), Said()


@fuzzing(80)
@example(rows=[Row(fails=True), Row("b")], records=[OLD, NEW, Said(1)])
@example(rows=[Row(interruptions=1), Row(event_id="")], records=[OLD, NEW, NEW, Said(1, event_id="e-6")])
@example(rows=[Row(), Row()], records=[Said(1), Said(0, (THEIRS,)), Said(0, (" " * 64 + THEIRS,))])
@given(rows=rows, records=records)
def test_row_is_handled_once_by_a_record_of_its_own_and_by_no_other(
    alias: str, rows: list[Row], records: list[Said]
) -> None:
    toys = Toys()
    _empty(alias)
    own_id = installation_id(alias)
    there = dict(_insert(alias, row) for row in rows)
    for row_id, row in there.items():
        if row.fails:
            toys.fail(row_id, ValueError("no"))
    put = [Record(_incoming(said, list(there.items()), own_id), own_id.encode()) for said in records]
    before = _columns(alias)
    consumer = factories.consumer(alias, toys)

    still = consumer.handle([each.incoming for each in put])

    assert still == []
    own = {row_id for row_id, row in there.items() if any(each.is_of(row_id, row) for each in put)}
    handled, failed, waiting = _expected(there, own)
    event(f"{len(handled)} handled, {len(failed)} failed, {len(waiting)} wait")
    assert Counter(effect_ids(alias)) == Counter(handled)
    for key in "abc":
        assert effect_ids(alias, key=key) == [each for each in handled if there[each].key == key]
    after = _columns(alias)
    for row_id in there:
        found = after[row_id]["status"], after[row_id]["retry_count"]
        if row_id in handled:
            assert found == (Status.CONSUMED, 0)
        elif row_id in failed:
            assert found == (Status.PENDING, 1)
        elif row_id in waiting:
            assert found == (Status.PENDING, 0)
        else:
            assert after[row_id] == before[row_id], "it has no record here, or was done before"
    assert after.keys() == before.keys()

    others = [each for each in put if each.is_of_another_installation]
    foreign = [each for each in put if each not in others and not any(each.is_of(*row) for row in there.items())]
    kept = RejectedRecord.objects.using(alias)
    assert sum(kept.exclude(installation=None).values_list("records", flat=True)) == len(others)
    places = kept.filter(installation=None).values_list("partition", "offset")
    assert sorted(places) == sorted((each.incoming.partition, each.incoming.offset) for each in foreign)
    totals = consumer.totals
    assert totals.rejected == len(others) + len(foreign)
    assert (totals.consumed, totals.retried, totals.waited, totals.dead) == (
        len(handled),
        len(failed),
        len(waiting),
        0,
    )
    if not failed:  # else part of the batch was done again, without the records that a row has more than one of
        assert totals.handled == len(put)


def _expected(there: dict[int, Row], own: set[int]) -> tuple[list[int], set[int], set[int]]:
    """Return which rows are handled, which fail and which wait for an unfinished row of their key."""
    handled: list[int] = []
    failed: set[int] = set()
    waiting: set[int] = set()
    blocked: set[str] = set()
    for row_id, row in sorted(there.items()):
        if row.status not in UNFINISHED:
            continue
        if row_id in own and row.key in blocked:
            waiting.add(row_id)
        elif row_id in own and not row.fails:
            handled.append(row_id)
            continue
        elif row_id in own:
            failed.add(row_id)
        blocked.add(row.key)
    return handled, failed, waiting


def _insert(alias: str, row: Row) -> tuple[int, Row]:
    """Insert a row; return its id, and the row with the event id that its column has."""
    row_id = factories.row(
        alias, key=row.key, event_type=row.event_type, status=row.status, interruptions=row.interruptions
    )
    stated = str(row_id) if row.event_id is None else row.event_id
    factories.change(alias, row_id, event_id=stated)
    return row_id, replace(row, event_id=stated)


def _incoming(said: Said, there: Sequence[tuple[int, Row]], own_id: str) -> IncomingRecord:
    row_id, row = there[said.place % len(there)]
    value: dict[str, Any] = {
        "outbox_id": row_id if said.names_row else row_id + 10**9,
        "event_type": row.event_type if said.event_type == "OWN" else said.event_type,
        "service_name": "agent",
        "payload": None,
    }
    if said.event_id is not None:
        stated = said.event_id
        if isinstance(stated, str):
            stated = {"OWN": row.event_id, "OWN ": f"{row.event_id} ", "ROW": str(row_id)}.get(stated, stated)
        value["event_id"] = stated
    headers = [
        ("event_id", b"of-no-meaning"),
        *[("installation_id", _bytes(each, own_id)) for each in said.installation],
    ]
    made = factories.record(json.dumps(value).encode(), key=row.key)
    return IncomingRecord(made.topic, made.partition, made.offset, made.key, made.value, tuple(headers))


def _bytes(installation: str | bytes, own_id: str) -> bytes:
    if isinstance(installation, bytes):
        return installation
    return installation.replace("OWN", own_id).replace("own", own_id.upper()).encode()


def _columns(alias: str) -> dict[int, dict[str, Any]]:
    return {each["id"]: each for each in AgentOutboxMessage.objects.using(alias).values()}


def _empty(alias: str) -> None:
    for model in (AgentOutboxMessage, RejectedRecord, ToyEffect):
        model._default_manager.using(alias).all().delete()
