"""How the admin shows moments, sizes, payloads and bytes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from outbox.admin.rendering import (
    first_line,
    moment,
    shown_bytes,
    shown_json,
    size_text,
    visible,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_moment_says_how_far_it_is() -> None:
    past, future = moment(NOW - timedelta(minutes=3), NOW), moment(NOW + timedelta(minutes=3), NOW)
    assert past is not None
    assert future is not None
    assert (past.exact, past.distance) == ("2026-01-02 03:01:05 UTC", "3m ago")
    assert future.distance == "in 3m"
    assert moment(None, NOW) is None


@pytest.mark.parametrize(("size", "text"), [(812, "812 B"), (12_595, "12.3 KiB"), (4 * 1024 * 1024, "4.0 MiB")])
def test_size_is_said_in_the_unit_that_fits(size: int, text: str) -> None:
    assert size_text(size) == text


def test_json_is_indented_and_every_number_kept() -> None:
    shown = shown_json('{"a":[1.50,12345678901234567890,{}],"b":[],"c":"ü\\u00fc"}')
    assert shown.text == ('{\n  "a": [\n    1.50,\n    12345678901234567890,\n    {}\n  ],\n  "b": [],\n  "c": "üü"\n}')
    assert shown.note == ""


def test_json_text_inside_of_json_is_opened_up() -> None:
    inner = json.dumps({"phase": "plan", "deeper": json.dumps([1, 2])})
    shown = shown_json(json.dumps({"snapshot_json": inner, "log": "[INFO] no JSON, though"})).text
    assert '"snapshot_json": (JSON text)\n    {\n      "phase": "plan"' in shown
    assert '"deeper": (JSON text)\n        [\n          1,\n          2\n        ]' in shown
    assert '"log": "[INFO] no JSON, though"' in shown


def test_what_is_no_json_comes_out_as_it_went_in() -> None:
    assert shown_json("no JSON, {but} text  here").text == "no JSON, {but} text  here"


def test_every_beginning_of_a_payload_is_shown() -> None:
    text = json.dumps({"a": [1, {"b": json.dumps({"c": "é\U0001f600 \\ \n"}, ensure_ascii=True)}], "d": "x" * 30})
    for length in range(len(text)):
        shown = shown_json(text[:length], limit=10_000, is_whole=False)
        assert shown.note
        shown.text.encode()


def test_large_payload_is_cut_with_a_note() -> None:
    shown = shown_json(json.dumps({"a": "x" * 200_000}))
    assert len(shown.text) == 64 * 1024
    assert shown.note == "Only the first 65,536 characters are shown."


@pytest.mark.parametrize("text", ["[" * 300_000, '{"a":' * 100_000, '["' * 100_000, '"\\' * 100_000])
def test_hostile_nesting_stays_small(text: str) -> None:
    assert len(shown_json(text).text) <= 64 * 1024


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible("a\u202eb\x00\ud800\tc\n") == "a\\u202eb\\u0000\\ud800\tc\n"
    assert visible(None) == ""
    assert "\u202e" not in shown_json('{"a": "\\u202e"}').text


def test_first_line_is_cut_with_an_ellipsis() -> None:
    assert first_line("one\ntwo") == "one"
    assert first_line("x" * 300, limit=10) == "xxxxxxxxxx…"
    assert first_line(None) == ""


@pytest.mark.parametrize(
    ("raw", "text", "note"),
    [
        (None, "", "There is none (null)."),
        (b"", "", "It is empty."),
        ("grüße".encode(), "grüße", ""),
        (b'{"a":1}', '{\n  "a": 1\n}', ""),
        (b"mostly text but for one \xff of its bytes", "mostly text but for one \\xff of its bytes", ""),
        (b"\xff\xfe\x00\x01ab", "00000000  ff fe 00 01 61 62", "No text: shown as hexadecimal."),
    ],
)
def test_bytes_are_shown_as_text_or_as_hexadecimal(raw: bytes | None, text: str, note: str) -> None:
    shown = shown_bytes(raw)
    assert (shown.text, shown.note) == (text, note)


def test_many_bytes_are_cut_with_a_note() -> None:
    shown = shown_bytes(b"\xff" * 100_000, limit=64)
    assert shown.text == "00000000  " + " ".join(["ff"] * 16)
    assert "16 of 100,000 bytes" in shown.note
