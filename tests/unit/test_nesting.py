"""The depth of JSON is measured rightly, whatever stands in its strings and however deep it goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.wire import nesting
from outbox.wire.nesting import NESTING_LIMIT, is_nested_too_deep


def depth_of(value: Any) -> int:
    """Count as a reader would."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if below is None else 1 + max(map(depth_of, below), default=0)


texts = st.text(st.sampled_from('[]{}\\",:a\n'), max_size=6)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@given(document=documents, limit=st.integers(0, 6))
def test_depth_is_that_which_a_reader_finds(document: Any, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "NESTING_LIMIT", limit)
        for ensure_ascii in (True, False):
            raw = json.dumps(document, ensure_ascii=ensure_ascii).encode()
            assert is_nested_too_deep(raw) == (depth_of(document) > limit)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize(
    ("depth", "is_too_deep"),
    [(NESTING_LIMIT, False), (NESTING_LIMIT + 1, True), (100_000, True)],
)
def test_limit_is_where_it_is_said(opening: bytes, depth: int, is_too_deep: bool) -> None:
    closing = b"]" if opening == b"[" else b"}"
    assert is_nested_too_deep(opening * depth + b"1" + closing * depth) is is_too_deep


@pytest.mark.parametrize("raw", [b"", b"]" * 1_000, b"[" * 1_000, b'"' + b"[" * 1_000 + b'"', b"[]" * 1_000])
def test_bytes_that_are_no_json_are_measured_all_the_same(raw: bytes) -> None:
    assert is_nested_too_deep(raw) is (raw == b"[" * 1_000)
