"""Curves as SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import pygal
from pygal.style import Style

from benchmarks.speed.report import Curve, number

_STYLE: Final = Style(background="white", plot_background="white", font_family="sans-serif")
_WIDE: Final = 100
"""Where the largest value is so many times the smallest, powers of ten stand at equal distances."""


def save(curve: Curve, folder: Path) -> Path:
    """Draw ``curve`` into ``folder``; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"bench-{curve.name}.svg"
    file.write_text(draw(curve), encoding="utf-8")
    return file


def draw(curve: Curve) -> str:
    """Return ``curve`` as SVG: the values of x at equal distances, y from 0 or by its logarithm."""
    values = [value for of in curve.series.values() for value in of if value is not None]
    least, most = min(values, default=0.0), max(values, default=1.0)
    by_logarithm = 0 < least * _WIDE <= most
    chart = pygal.Line(
        title=curve.title,
        x_title=curve.x,
        y_title=curve.y,
        x_labels=curve.at,
        logarithmic=by_logarithm,
        y_labels=_powers_of_ten(least, most) if by_logarithm else None,
        range=None if by_logarithm else (0, most or 1.0),
        value_formatter=number,
        legend_at_bottom=True,
        width=720,
        height=420,
        style=_STYLE,
        stroke_style={"width": 2.5},
        dots_size=4,
        js=(),
        no_prefix=True,
        disable_xml_declaration=True,
    )
    for name, series in curve.series.items():
        chart.add(name, series)
    return str(chart.render())


def _powers_of_ten(least: float, most: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]
