"""Ids of rows as they come in addresses and forms: text, and perhaps none that a table can hold."""

from __future__ import annotations

from typing import Final

from django.urls import register_converter
from django.urls.converters import IntConverter

_MAX_DIGITS: Final = 18
"""A bigint has 19; every number of 18 is one."""


class RowIdConverter(IntConverter):
    """``<row_id:…>`` in a path: an address with a number that no table can hold is not found."""

    regex = f"[0-9]{{1,{_MAX_DIGITS}}}"


register_converter(RowIdConverter, "row_id")


def read_row_id(text: str) -> int:
    """Read an id; 0, which no row has, where the text is none."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else 0
