"""What tests feed to everything that reads bytes from outside: JSON that is nearly right, and texts that hurt.

A document is a list of members as raw JSON, ``("user_id", "7")``, so that a mutant can be what no encoder would write:
a key twice, a number of five thousand digits, half a surrogate pair, brackets without end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from outbox.declarations.contracts import contracts
from outbox.exceptions import PayloadError
from tests.unit.test_service_contracts import EVENTS, MOMENT

Member = tuple[str, str]
Document = Sequence[Member]

DEEP: Final = "[" * 50_000 + "]" * 50_000
"""Valid JSON, nested more deeply than any decoder follows."""

DIGITS: Final = "9" * 5_000
"""More than Python turns into a number."""

RAW_VALUES: Final = (
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "-0.0",
    "1e5",
    "1e400",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    DIGITS,
    f"-{DIGITS}",
    f"0.{DIGITS}",
    "NaN",
    "Infinity",
    "007",
    "'7'",
    '""',
    '" "',
    '"7"',
    '"\\u0000"',
    '"a\\u0000b"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83c\\udf89"',
    '"\\uzzzz"',
    '"\\"',
    '"\x00"',
    '"\ufeff"',
    '"9999-12-31T23:59:59-14:00"',
    '"0001-01-01T00:00:00+14:00"',
    '"9999-12-31T23:59:59Z"',
    '"0001-01-01T00:00:00Z"',
    '"2026-02-29T00:00:00Z"',
    '"2026-03-01T00:00:00"',
    '"//example.com/assistant/"',
    '"/assistant/../../"',
    f'"{"x" * 129}"',
    f'"{"é" * 70_000}"',
    "[]",
    "{}",
    "[1, 1]",
    "[[]]",
    '[{"a": null}]',
    '{"a": {"a": {}}}',
    '{"\\u0000": 1, "": 2}',
    "[" * 300 + "]" * 300,
    "[" * 970 + "]" * 970,
    '{"a":' * 970 + "1" + "}" * 970,
    DEEP,
    DEEP[:50_000],
)

NASTY_TEXTS: Final = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "\r\nX-Injected: 1",
    "\ufeff",
    "\u202eabc",
    "٣",
    "²",
    "-1",
    "0",
    "1.5",
    "1e9",
    "0x10",
    "9" * 18,
    "9" * 19,
    DIGITS,
    "None",
    "null",
    "%s",
    "%",
    "%00",
    "_5F",
    "{0}",
    "{{ 7|add:7 }}",
    "' OR 1=1 --",
    "../../etc",
    "//example.com",
    "http://[",
    "a,b:c;d",
    "🎉" * 40,
    "x" * 129,
    "x" * 3_000,
)

NUMBERS: Final = ("0", "1", "-1", "2", "127", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808")

MOMENTS: Final = (
    MOMENT,
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "0999-12-31T23:59:59.999999Z",
    "1582-10-10T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "2038-01-19T03:14:08Z",
    "2026-03-01t08:30:00.123456789z",
    "2026-06-30T23:59:60Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-00:01",
)

plain_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
texts = st.integers(0, len(NASTY_TEXTS) - 1).map(NASTY_TEXTS.__getitem__) | plain_texts
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_texts, inner, max_size=3),
    max_leaves=8,
)
raw_values = st.integers(0, len(RAW_VALUES) - 1).map(RAW_VALUES.__getitem__) | json_values.map(json.dumps)


def fuzzing(max_examples: int) -> settings:
    """Return how a fuzz test runs: by the same examples in every run, unless ``tests.properties`` is told otherwise.

    Its fixtures are made once for all examples: what an example needs fresh, it makes itself.
    """
    return settings(
        deadline=None,
        max_examples=max_examples,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def document(values: Mapping[str, Any]) -> list[Member]:
    """Return ``values`` as raw members."""
    return [(name, json.dumps(value)) for name, value in values.items()]


def written(members: Document) -> str:
    """Return the JSON object of ``members``."""
    return "{" + ", ".join(f"{json.dumps(name)}: {raw}" for name, raw in members) + "}"


@cache
def full_payload(event_type: str) -> dict[str, Any]:
    """Return a payload that keeps the contract of ``event_type``, with every optional field."""
    contract = contracts.get(event_type)
    payload = dict(next(event[5] for event in EVENTS if event[0] == event_type))
    for field in msgspec.structs.fields(contract.payload_type):
        for value in ("x", MOMENT, 1, {"a": 1}):
            if field.encode_name in payload or _refused(event_type, payload | {field.encode_name: value}):
                continue
            payload[field.encode_name] = value
    return payload


def _refused(event_type: str, payload: dict[str, Any]) -> bool:
    contract = contracts.get(event_type)
    try:
        contract.decode(msgspec.json.encode(payload), version=contract.version)
    except PayloadError:
        return True
    return False


def _resembling(raw: str) -> st.SearchStrategy[str]:
    """Return raw values of the same kind as ``raw``, many of them as good as it."""
    if raw.startswith('"'):
        return (st.sampled_from(MOMENTS) | texts).map(json.dumps)
    if raw[:1].isdigit():
        return st.sampled_from(NUMBERS)
    return raw_values


@st.composite
def altered(draw: st.DrawFn, members: Document) -> list[Member]:
    """Change, drop, double or add one to three members."""
    changed = list(members)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed) - 1)) if changed else 0
        how = draw(st.sampled_from(("resemble", "resemble", "resemble", "replace", "drop", "double", "add")))
        if how == "add" or not changed:
            changed.insert(at, (draw(texts), draw(raw_values)))
        elif how == "drop":
            del changed[at]
        elif how == "resemble":
            changed[at] = (changed[at][0], draw(_resembling(changed[at][1])))
        else:
            member = (changed[at][0], draw(raw_values))
            changed[at : at + (how == "replace")] = [member]
    return changed


@st.composite
def similar(draw: st.DrawFn, members: Document) -> str:
    """Give one or two members other values of their kind: most of what comes out can be decoded."""
    changed = list(members)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(changed) - 1))
        changed[at] = (changed[at][0], draw(_resembling(changed[at][1])))
    return written(changed)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """Cut, stretch or spoil the bytes of ``text``."""
    raw = text.encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(raw)))
    how = draw(st.sampled_from(("cut", "behind", "insert", "overwrite", "bom", "utf-16", "twice")))
    if how == "cut":
        return raw[:at]
    if how == "behind":
        return raw[at:]
    if how == "insert":
        return raw[:at] + draw(st.binary(min_size=1, max_size=4)) + raw[at:]
    if how == "overwrite":
        junk = draw(st.binary(min_size=1, max_size=4))
        return raw[:at] + junk + raw[at + len(junk) :]
    if how == "bom":
        return b"\xef\xbb\xbf" + raw
    return text.encode("utf-16", "surrogatepass") if how == "utf-16" else raw + raw


def mutants(members: Document) -> st.SearchStrategy[bytes]:
    """Return bytes that are nearly the JSON object of ``members``, and sometimes are."""
    whole = altered(members).map(written)
    return st.one_of(
        whole.map(lambda text: text.encode("utf-8", "surrogatepass")),
        damaged(written(members)),
        whole.flatmap(damaged),
    )


def nested(outer: Document, name: str, inner: Document) -> st.SearchStrategy[bytes]:
    """Return mutants of ``outer``, of the object ``inner`` inside of it as ``name``, or of both."""

    def around(value: str) -> list[Member]:
        return [*outer, (name, value)]

    return st.one_of(
        mutants(around(written(inner))),
        altered(inner).map(lambda members: written(around(written(members))).encode("utf-8", "surrogatepass")),
        altered(inner).flatmap(lambda members: mutants(around(written(members)))),
    )


def nested_similar(outer: Document, name: str, inner: Document) -> st.SearchStrategy[bytes]:
    """Return the object ``outer`` with ``inner`` inside of it as ``name``, one of them with similar values."""
    of_inner = similar(inner).map(lambda text: written([*outer, (name, text)]))
    of_outer = similar(outer).map(lambda text: f"{text[:-1]}, {json.dumps(name)}: {written(inner)}}}")
    return (of_inner | of_outer).map(lambda text: text.encode("utf-8", "surrogatepass"))
